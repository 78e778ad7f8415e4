// Choosing photos: a file, a drop or an example. Photos are drawn at most SIDE pixels large, which also drops their metadata.

import { text } from "./language.js";

const SIDE = 1024;

export class Picker {
  constructor(host, examples, changed, failed) {
    this.photo = null;
    this.changed = changed;
    this.failed = failed;
    this.drop = element("label", "drop");
    this.input = element("input");
    this.input.type = "file";
    this.input.accept = "image/*";
    this.hint = element("span");
    this.hint.dataset.text = "drop";
    this.hint.textContent = text("drop");
    this.drop.append(this.hint, this.input);
    host.append(this.drop);
    this.input.addEventListener("change", () => this.read(this.input.files[0]));
    for (const name of ["dragover", "dragleave", "drop"]) {
      this.drop.addEventListener(name, (event) => {
        event.preventDefault();
        this.drop.classList.toggle("over", name === "dragover");
        if (name === "drop") this.read(event.dataTransfer.files[0]);
      });
    }
    if (examples.length) {
      const row = element("div", "examples");
      for (const example of examples) {
        const button = element("button");
        button.type = "button";
        const image = element("img");
        image.src = `page/examples/${example}`;
        image.loading = "lazy";
        image.dataset.alt = example.replace(/^.*\/|\.\w+$/g, "");
        image.alt = text(image.dataset.alt);
        button.append(image);
        button.addEventListener("click", async () => this.read(await (await fetch(image.src)).blob()));
        row.append(button);
      }
      host.append(row);
    }
  }

  // A photo in the browser: {url, image}, with transparent parts white.
  async read(file) {
    if (!file) return;
    try {
      const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
      const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
      const canvas = element("canvas");
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      const context = canvas.getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      this.set({ url: canvas.toDataURL("image/jpeg", 0.92), image: canvas });
    } catch {
      this.set(null);
      this.failed(text("notPicture"));
    }
  }

  set(photo) {
    this.photo = photo;
    this.drop.querySelector("img")?.remove();
    this.drop.classList.toggle("full", Boolean(photo));
    if (photo) {
      const image = element("img");
      image.src = photo.url;
      image.dataset.alt = "chosen";
      image.alt = text("chosen");
      this.drop.prepend(image);
    }
    this.input.value = "";
    this.changed(photo);
  }
}

export function element(name, className = "", content = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (content) made.textContent = content;
  return made;
}
