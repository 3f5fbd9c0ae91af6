// Tables whose cells hold a number and a bar.

import { h } from "#page/ui/dom.js";

// A number with a bar below it; `share` from -1 to 1 is how much of the cell the bar fills, to the left where negative.
export function barCell(text, share, kind = "") {
  const bar = h("span", { class: `bar ${share < 0 ? "negative" : "positive"} ${kind}`, "aria-hidden": "true" });
  bar.style.inlineSize = `${Math.min(Math.abs(share), 1) * 100}%`;
  return h(
    "td",
    { class: "bar-cell" },
    h("span", { class: "bar-number" }, text),
    h("span", { class: "bar-ground" }, bar),
  );
}

// heads: header texts or nodes; lines: [{head: node, cells: td[], selected: bool}].
export function table(caption, heads, lines, className = "") {
  return h(
    "table",
    { class: `figures ${className}` },
    h("caption", {}, caption),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        heads.map((head) => h("th", { scope: "col" }, head)),
      ),
    ),
    h(
      "tbody",
      {},
      lines.map(({ head, cells, selected }) =>
        h("tr", { class: selected ? "selected" : undefined }, h("th", { scope: "row" }, head), cells),
      ),
    ),
  );
}
