// Where a system looked: the photo shines where it attended to, and sinks into a dark blue veil elsewhere.

const VEIL = [32, 36, 90];
const OPACITY = 0.82;

export function drawPhoto(canvas, photo, map = null) {
  canvas.hidden = !photo;
  if (!photo) return;
  canvas.width = photo.image.width;
  canvas.height = photo.image.height;
  const context = canvas.getContext("2d");
  context.drawImage(photo.image, 0, 0);
  if (!map) return;
  const small = document.createElement("canvas");
  small.width = map[0].length;
  small.height = map.length;
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, index) => pixels.data.set([...VEIL, Math.round(255 * OPACITY * (1 - value))], 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// The words of a text as buttons; pointing at one, or moving to it, shows its map.
export function wordButtons(evidence, show) {
  const row = document.createElement("p");
  row.className = "words";
  evidence.words.forEach((word, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.title = `${Math.round(100 * Math.exp(evidence.logprobs[index]))}%`;
    const select = () => {
      document.querySelectorAll(".words button").forEach((other) => other.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", "true");
      show(evidence.maps[index][0], word);
    };
    button.addEventListener("mouseenter", select);
    button.addEventListener("focus", select);
    button.addEventListener("click", select);
    row.append(button, " ");
  });
  return row;
}
