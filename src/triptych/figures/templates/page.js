"use strict";
document.documentElement.classList.add("live");
for (const panel of document.querySelectorAll(".panel")) {
  const stage = [...panel.querySelectorAll(".stage img")];
  const caption = panel.querySelector(".caption");
  const words = [...panel.querySelectorAll(".word")];
  const items = [...panel.querySelectorAll(".strip li")];
  const rest = stage.map((image) => [image.src, image.alt]);
  let pinned = -1;

  // Show one word's maps on the large photo, or with -1 the photo alone.
  const show = (index) => {
    const maps = index < 0 ? [] : [...items[index].querySelectorAll("img")];
    stage.forEach((image, n) => {
      [image.src, image.alt] = index < 0 ? rest[n] : [maps[n].src, maps[n].alt];
    });
    for (const list of [words, items]) list.forEach((element, at) => element.classList.toggle("shown", at === index));
  };
  const pin = (index) => {
    pinned = index;
    words.forEach((word, at) => (word.tabIndex = at === Math.max(index, 0) ? 0 : -1));
    show(index);
  };

  for (const list of [words, items]) {
    list.forEach((element, index) => {
      element.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(index));
      element.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(pinned));
      element.addEventListener("click", (event) => {
        event.preventDefault();
        pin(pinned === index ? -1 : index);
      });
    });
  }
  words.forEach((word, index) => word.addEventListener("focus", () => word.matches(":focus-visible") && pin(index)));
  caption.addEventListener("keydown", (event) => {
    const at = words.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: words.length - 1 }[event.key];
    if (event.key === "Escape") pin(-1);
    else if (words[to]) words[to].focus();
    if (to !== undefined || event.key === "Escape") event.preventDefault();
  });
  pin(-1);
}
