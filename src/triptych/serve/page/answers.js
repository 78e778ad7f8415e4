// Captions and answers about one photo, with maps of where each system looked.

import { post } from "./api.js";
import { $, card, modelsFor, modelsThat, onSubmit, photoOf, run, scoreBars, title, translated } from "./ui.js";
import { element } from "./photos.js";

// The captions first; where each system looked takes longer and follows.
export function startCaptions(picker, view) {
  $("caption-run").addEventListener("click", () =>
    run($("caption-run"), async () => {
      const image = photoOf(picker);
      const captions = new Map();
      $("caption-results").replaceChildren();
      view.draw();
      for (const model of modelsFor("caption")) {
        const { caption } = await post("v1/caption", { model, image });
        const words = element("p", "words", caption);
        const made = card(title(model), words);
        captions.set(model, { caption, words, made });
        $("caption-results").append(made);
      }
      for (const [model, { caption, words, made }] of captions) {
        if (modelsThat("explain").includes(model)) {
          const { evidence } = await post("v1/caption", { model, image, explain: true });
          if (evidence) words.replaceWith(view.wordButtons(model, evidence, caption));
          if (evidence?.expected.length) {
            const note = element("p", "note");
            note.append(translated("span", "", "expected"), ` ${evidence.expected.join(", ")}`);
            made.append(note);
          }
        } else made.append(translated("p", "note", "noMaps"));
      }
    }),
  );
}

export function startAsk(picker, view) {
  onSubmit($("ask-form"), async (form) => {
    const choices = form.get("choices").split(",").map((choice) => choice.trim()).filter(Boolean);
    const body = { images: [photoOf(picker)], question: form.get("question") };
    $("ask-results").replaceChildren();
    view.draw();
    for (const model of modelsFor("ask")) {
      const more = choices.length ? { choices } : { explain: true };
      const { answer, scores, evidence } = await post("v1/ask", { model, ...body, ...more });
      const words = evidence ? view.wordButtons(model, evidence, answer) : element("p", "words", answer);
      $("ask-results").append(card(title(model), words, ...(scores ? [scoreBars(scores)] : [])));
    }
  });
}
