// One tab stop for a picture of many values: arrow keys and the pointer move over it, and a line below says the value.

import { h, newId } from "#page/ui/dom.js";

const MOVES = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  PageUp: [-5, 0],
  PageDown: [5, 0],
};

let chosen = null; // {key, place}: choosing a row draws the picture anew, and the cursor stays where it was

// Make `area` such a picture.
//   rows, cols   how many values there are; cols may be a function of the row
//   locate       pointer event -> [row, column], or null outside
//   describe     (row, column) -> the text of the value
//   mark         (row, column) or (null) -> moves or removes the mark in the drawing
//   turned       whether rows lie beside each other, so that left and right change the row
//   choose       what Enter, Space or a click does with a row, if anything
// Returns the line that the values are written to.
export function addCursor(
  area,
  { rows, cols, locate, describe, mark, choose, turned = false, label, hint, start = [0, 0] },
) {
  const readout = h("output", { class: "readout", id: newId("readout"), "aria-live": "polite" }, hint);
  const columns = typeof cols === "function" ? cols : () => cols;
  const { key } = area.dataset;
  let [r, c] = key !== undefined && chosen?.key === key ? chosen.place : start;
  const show = (row, column) => {
    [r, c] = [row, column];
    readout.textContent = describe(r, c);
    readout.classList.add("filled");
    mark(r, c);
  };
  const pick = (...place) => {
    chosen = { key, place };
    choose(...place);
    chosen = null;
  };
  const leave = () => {
    if (document.activeElement === area) return;
    readout.textContent = hint;
    readout.classList.remove("filled");
    mark(null);
  };
  area.setAttribute("tabindex", "0");
  area.setAttribute("role", "application");
  area.setAttribute("aria-label", label);
  area.setAttribute("aria-describedby", readout.id);
  area.classList.add("cursor-area");
  area.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (move && !event.altKey && !event.ctrlKey && !event.metaKey) {
      const [down, right] = turned ? [move[1], move[0]] : move;
      const row = Math.min(Math.max(r + down, 0), rows - 1);
      show(row, Math.min(Math.max(c + right, 0), columns(row) - 1));
    } else if (event.key === "Home") show(r, 0);
    else if (event.key === "End") show(r, columns(r) - 1);
    else if (choose && (event.key === "Enter" || event.key === " ")) pick(r, c);
    else return;
    event.preventDefault();
  });
  area.addEventListener("focus", () => show(Math.min(r, rows - 1), Math.min(c, columns(Math.min(r, rows - 1)) - 1)));
  area.addEventListener("blur", leave);
  for (const name of ["pointerdown", "pointermove"]) {
    area.addEventListener(name, (event) => {
      const place = locate(event);
      if (place) show(...place);
    });
  }
  area.addEventListener("pointerleave", leave);
  if (choose) {
    area.addEventListener("click", (event) => {
      const place = locate(event);
      if (place) pick(...place);
    });
  }
  return readout;
}
