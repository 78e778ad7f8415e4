// Flamingo's gates and the Q-Former's three masks.

import { get, post } from "./api.js";
import { text } from "./language.js";
import { element } from "./photos.js";
import { $, card, translated } from "./ui.js";

export async function showGates() {
  const { gates } = await get("v1/gates");
  const head = element("tr");
  for (const key of ["block", "attention", "feedForward"]) {
    const cell = translated("th", "", key);
    cell.scope = "col";
    head.append(cell);
  }
  const rows = gates.map(({ block, attention, feed_forward: feedForward }) => {
    const row = element("tr");
    const name = element("th", "", String(block));
    name.scope = "row";
    row.append(name);
    for (const value of [attention, feedForward]) {
      const cell = element("td");
      const meter = element("meter");
      meter.value = Math.abs(value);
      meter.setAttribute("aria-hidden", "true");
      cell.append(element("span", "", value.toFixed(3)), meter);
      row.append(cell);
    }
    return row;
  });
  $("gates").replaceChildren(head, ...rows);
}

export async function showMasks(sentence) {
  const { queries, words, masks } = await post("v1/masks", { text: sentence });
  $("masks").replaceChildren(
    ...Object.entries(masks).map(([name, rows]) => {
      const table = element("table", "mask");
      table.setAttribute("role", "img");
      table.dataset.label = name;
      table.setAttribute("aria-label", text(name));
      rows.forEach((row, index) => {
        const line = element("tr");
        const label = index < queries ? translated("span", "", "queryVector") : element("span", "", words[index - queries]);
        const head = element("th");
        head.append(label, index < queries ? ` ${index + 1}` : "");
        line.append(head, ...row.map((on) => element("td", on ? "on" : "")));
        table.append(line);
      });
      const scroll = element("div", "scroll");
      scroll.append(table);
      return card(name.toUpperCase(), scroll, translated("p", "note", name));
    }),
  );
}
