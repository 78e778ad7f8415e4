// Where a system looked: the photo stays clear where it attended to, and is veiled in dark blue elsewhere.

import { text } from "./language.js";
import { title } from "./ui.js";

const VEIL = [32, 36, 90];
const OPACITY = 0.82;

// A photo in a figure of the page, with the map of one word over it.
export class View {
  constructor(figure, picker) {
    this.figure = figure;
    this.picker = picker;
    this.canvas = figure.querySelector("canvas");
    this.caption = figure.querySelector("figcaption");
    this.draw();
  }

  draw(map = null, word = "", model = "") {
    const { photo } = this.picker;
    this.figure.hidden = !photo;
    this.caption.textContent = map ? `${title(model)}: ${word}` : "";
    this.canvas.setAttribute("aria-label", map ? `${text("lookedAt")} ${this.caption.textContent}` : text("chosen"));
    if (!photo) return;
    this.canvas.width = photo.image.width;
    this.canvas.height = photo.image.height;
    const context = this.canvas.getContext("2d");
    context.drawImage(photo.image, 0, 0);
    if (map) drawVeil(context, map);
  }

  // The words of a text as buttons; pointing at one, or moving to it, shows its map. ``sentence``: the text as it is read.
  wordButtons(model, evidence, sentence) {
    const row = document.createElement("p");
    row.className = "words";
    const written = sentence.split(/\s+/);
    evidence.words.forEach((word, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = written.length === evidence.words.length ? written[index] : word;
      button.title = `${Math.round(100 * Math.exp(evidence.logprobs[index]))}%`;
      const select = () => {
        document.querySelectorAll(".words button").forEach((other) => other.setAttribute("aria-pressed", "false"));
        button.setAttribute("aria-pressed", "true");
        this.draw(evidence.maps[index][0], word, model);
      };
      for (const name of ["mouseenter", "focus", "click"]) button.addEventListener(name, select);
      row.append(button, " ");
    });
    return row;
  }
}

function drawVeil(context, map) {
  const small = document.createElement("canvas");
  small.width = map[0].length;
  small.height = map.length;
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, index) => pixels.data.set([...VEIL, Math.round(255 * OPACITY * (1 - value))], 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}
