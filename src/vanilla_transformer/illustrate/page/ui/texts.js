// The page's words in one language.

import { h, plain, rich } from "#page/ui/dom.js";

export class Texts {
  constructor(language, strings) {
    this.language = language;
    this.strings = strings;
  }

  find(key) {
    if (!(key in this.strings)) throw new Error(`The text "${key}" is missing in the language "${this.language}".`);
    return this.strings[key];
  }

  // Plain text, for labels.
  t(key, values = {}) {
    return plain(this.find(key), values);
  }

  // Text with emphasis and with nodes in place of names.
  rich(key, values = {}) {
    return rich(this.find(key), values);
  }

  // Paragraphs, which an empty line separates.
  paragraphs(key, values = {}) {
    return this.find(key)
      .split("\n\n")
      .map((text) => h("p", {}, rich(text, values)));
  }
}
