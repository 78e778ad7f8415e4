// Search in the server's library.

import { post } from "./api.js";
import { element } from "./photos.js";
import { $, card, modelsFor, onSubmit, translated } from "./ui.js";

const AT_LEAST = 0.3; // the probability of a match, as on the command line's sheet of photos
const CLOSEST = 3; // photos if none matches

export function startFind() {
  onSubmit($("find-form"), async (form) => {
    const [model] = modelsFor("match");
    const { results } = await post("v1/find", { model, query: form.get("query") });
    const matches = results.filter((result) => result.probability >= AT_LEAST);
    const photos = (matches.length ? matches : results.slice(0, CLOSEST)).map((result) => {
      const image = element("img");
      image.src = result.thumbnail;
      image.alt = result.name;
      return card(`${result.rank}. ${result.name}`, image, element("p", "note", `${Math.round(100 * result.probability)}%`));
    });
    $("find-note").replaceChildren(...(matches.length ? [] : [translated("span", "", "closest")]));
    $("find-results").replaceChildren(...photos);
  });
}
