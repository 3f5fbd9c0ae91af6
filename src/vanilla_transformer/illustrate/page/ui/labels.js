// Tokens as people read them.

import { h } from "#page/ui/dom.js";

const SPACE = "␣";
const segmenter = new Intl.Segmenter();

// Whether a grapheme takes two columns: Hangul, Han, kana, emoji.
const isWide = (grapheme) =>
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u.test(
    grapheme,
  );

// How many columns of a fixed-width font a text takes.
export const columnsOf = (text) =>
  Array.from(segmenter.segment(text)).reduce((sum, { segment }) => sum + (isWide(segment) ? 2 : 1), 0);

// The first `columns` columns of a text, with an ellipsis where something was cut.
export function shorten(text, columns) {
  let used = 0;
  let kept = "";
  for (const { segment } of segmenter.segment(text)) {
    used += isWide(segment) ? 2 : 1;
    if (used > columns) return `${kept}…`;
    kept += segment.slice(0, 12); // a letter with a hundred combining marks is still cut
  }
  return kept;
}

// What is drawn for a token: a leading space as a mark, control characters as their number.
export function visible(piece) {
  const text = piece.replace(
    /[\p{Cc}\p{Zl}\p{Zp}]/gu,
    (c) => `<U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`,
  );
  const spaces = text.match(/^ */)[0].length;
  return SPACE.repeat(spaces) + text.slice(spaces) || "∅";
}

// An HTML element for a token; right-to-left pieces keep to themselves.
export function token(piece, columns = 16) {
  const text = visible(piece);
  const label = shorten(text, columns);
  return h("bdi", { class: "token", title: label === text ? undefined : shorten(text, 200) }, label);
}

// A token inside a running text of a label: without the mark of the space.
export const spoken = (piece) => shorten(piece.trim() || visible(piece), 24);
