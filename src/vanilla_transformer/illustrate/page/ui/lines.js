// Attention as lines from the word that looks to the words that it looks at; the thicker the line, the larger the weight.

import { svg } from "#page/ui/dom.js";
import { columnsOf, shorten, visible } from "#page/ui/labels.js";
import { probability } from "#page/ui/numbers.js";

const LEAST = 0.02; // lines below this weight are not drawn

// Draw the weights {data, rows, cols} of one head in `width` px, the row `selected` strong and with its numbers.
export function linesPicture(weights, width, { fromPieces, toPieces, selected, choose, label }) {
  const rows = Math.max(fromPieces.length, toPieces.length);
  const step = Math.max(Math.min(26, 560 / rows), 14);
  const columns = Math.min(Math.max(Math.floor((width - 110) / 15), 4), 11);
  const room = (pieces) => 12 + 7.3 * Math.max(...pieces.map((piece) => columnsOf(shorten(visible(piece), columns))));
  const left = room(fromPieces);
  const right = Math.max(width - room(toPieces) - 42, left + 20);
  const height = rows * step + 8;
  const y = (i, length) => 4 + ((rows - length) / 2 + i + 0.5) * step;
  const drawing = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    class: "lines-picture",
    role: "img",
    "aria-label": label,
  });
  for (const strong of [false, true]) {
    for (let r = 0; r < weights.rows; r++) {
      if ((r === selected) !== strong) continue;
      for (let c = 0; c < weights.cols; c++) {
        const weight = weights.data[r * weights.cols + c];
        if (weight < LEAST) continue;
        const [from, to] = [y(r, fromPieces.length), y(c, toPieces.length)];
        const bend = (right - left) / 3;
        drawing.append(
          svg("path", {
            d: `M${left} ${from}C${left + bend} ${from} ${right - bend} ${to} ${right} ${to}`,
            class: strong ? "line strong" : "line",
            "stroke-width": (0.5 + 6.5 * weight).toFixed(2),
          }),
        );
      }
    }
  }
  fromPieces.forEach((piece, r) => {
    const text = svg(
      "text",
      { x: left - 6, y: y(r, fromPieces.length), class: r === selected ? "row-label strong" : "row-label" },
      shorten(visible(piece), columns),
    );
    if (choose) {
      const target = svg("rect", {
        x: 0,
        y: y(r, fromPieces.length) - step / 2,
        width: left,
        height: step,
        class: "hit",
      });
      target.addEventListener("click", () => choose(r));
      drawing.append(target);
    }
    drawing.append(text);
  });
  toPieces.forEach((piece, c) => {
    const weight = selected === undefined ? 0 : weights.data[selected * weights.cols + c];
    drawing.append(
      svg(
        "text",
        { x: right + 44, y: y(c, toPieces.length), class: weight >= 0.2 ? "to-label strong" : "to-label" },
        shorten(visible(piece), columns),
      ),
    );
    if (selected !== undefined)
      drawing.append(
        svg("text", { x: right + 4, y: y(c, toPieces.length), class: "line-number" }, probability(weight)),
      );
  });
  return drawing;
}
