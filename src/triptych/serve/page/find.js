// Search in the server's library.

import { post } from "./api.js";
import { element } from "./photos.js";
import { $, card, modelsThat, onSubmit, translated } from "./ui.js";

const AT_LEAST = 0.3; // as the command line's sheet of photos

export function startFind() {
  onSubmit($("find-form"), async (form) => {
    const [model] = modelsThat("match");
    const { results } = await post("v1/find", { model, query: form.get("query"), at_least: AT_LEAST });
    const photos = results.map((result) => {
      const image = element("img");
      image.src = result.thumbnail;
      image.alt = result.name;
      return card(`${result.rank}. ${result.name}`, image, element("p", "note", `${Math.round(100 * result.probability)}%`));
    });
    $("find-results").replaceChildren(...(photos.length ? photos : [translated("p", "note", "noPhoto")]));
  });
}
