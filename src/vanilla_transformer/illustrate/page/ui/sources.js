// The dialog that shows the Python function behind a formula.

import { h } from "#page/ui/dom.js";

const PARTS =
  /("""[\s\S]*?"""|#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\b(?:def|class|return|if|elif|else|for|while|in|not|and|or|is|None|True|False|with|as|import|from|raise|try|except|yield|lambda|assert)\b)/;

function highlighted(code) {
  return code.split(PARTS).map((part, i) => {
    if (i % 2 === 0) return part;
    const kind = part.startsWith("#") ? "comment" : /^["']/.test(part) ? "string" : "keyword";
    return h("span", { class: `code-${kind}` }, part);
  });
}

// Open the source {file, name, line, code} in a dialog; closing gives the focus back to the button.
export function showSource({ file, name, line, code }, texts) {
  const close = h(
    "button",
    { type: "button", class: "close", autofocus: true, onclick: () => dialog.close() },
    texts.t("source.close"),
  );
  const dialog = h(
    "dialog",
    { class: "source-dialog", "aria-labelledby": "source-title" },
    h("header", {}, h("h2", { id: "source-title" }, h("code", {}, name)), close),
    h("p", { class: "source-place" }, texts.rich("source.place", { file: h("code", {}, file), line: String(line) })),
    h("pre", { tabindex: "0", role: "region", "aria-label": texts.t("source.code") }, h("code", {}, highlighted(code))),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
}
