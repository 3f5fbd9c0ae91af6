// Byte-level BPE (section 5.1) as tokenizer.json describes it: text to ids, and back.
//
// What tokenizer.json leaves to the library stands in its entry "page", which payload.py adds: the pattern that cuts a
// text into pieces, and which characters it takes for letters, digits, marks and spaces (browsers have different
// versions of Unicode).

const NO_MERGE = Infinity;

export class Tokenizer {
  constructor(json) {
    const { pattern, characters, added_tokens, normal_form, appended, skipped } = json.page;
    const lists = listCharacters(characters);
    this.piecePattern = new RegExp(translatePattern(pattern, lists), "gu");
    // In the order in which they are looked for.
    this.added = added_tokens.map((tokens) => new AddedTokens(tokens, lists.s));
    this.normalForm = normal_form;
    this.appended = appended; // [`</s>`]
    this.skipped = new Set(skipped);
    this.vocabulary = new Map(Object.entries(json.model.vocab));
    this.ranks = new Map(json.model.merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.tokens = []; // by id
    for (const [token, id] of this.vocabulary) this.tokens[id] = token;
    for (const { content, id } of json.added_tokens) this.tokens[id] = content;
    this.whole = new Set(json.added_tokens.map(({ id }) => id)); // added tokens are written as they are
    this.cache = new Map(); // the ids of pieces that occurred before
  }

  /** Ids of a text, with `</s>`. Half a surrogate pair, which only JavaScript's strings can hold, becomes U+FFFD. */
  encode(text) {
    let parts = [text.replace(/\p{Surrogate}/gu, "\ufffd")]; // texts, and ids of added tokens
    for (const added of this.added) {
      parts = parts.flatMap((part) => (typeof part === "string" ? added.split(part) : [part]));
    }
    const ids = parts.flatMap((part) => (typeof part === "string" ? this.encodeText(part) : [part]));
    return [...ids, ...this.appended];
  }

  /** Ids of a source: in the Unicode normal form of the tokenizer's training text, as translate() has it. */
  encodeSource(text) {
    return this.encode(this.normalForm ? text.normalize(this.normalForm) : text);
  }

  encodeText(text) {
    return (text.match(this.piecePattern) ?? []).flatMap((piece) => {
      if (!this.cache.has(piece)) this.cache.set(piece, this.merge(piece));
      return this.cache.get(piece);
    });
  }

  /** Byte pair encoding: of all neighbours, join the pair that was learned first, until none was learned. */
  merge(piece) {
    const symbols = Array.from(UTF8.encode(piece), (byte) => BYTE_CHARACTERS[byte]);
    for (;;) {
      let [best, place] = [NO_MERGE, -1];
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = this.ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? NO_MERGE;
        if (rank < best) [best, place] = [rank, i];
      }
      if (best === NO_MERGE) return symbols.map((symbol) => this.vocabulary.get(symbol));
      symbols.splice(place, 2, symbols[place] + symbols[place + 1]);
    }
  }

  /** Text of ids, without special tokens. Bytes that are no character become U+FFFD. */
  decode(ids) {
    const tokens = ids.filter((id) => !this.skipped.has(id) && this.tokens[id] !== undefined);
    return textOf(tokens.flatMap((id) => bytesOf(this.tokens[id])));
  }

  /** What each id stands for, to be read: its text, or bytes that are no whole character as <0xE3>. */
  pieces(ids) {
    return ids.map((id) => {
      if (this.tokens[id] === undefined) return `[${id}]`;
      return this.whole.has(id) ? this.tokens[id] : readable(bytesOf(this.tokens[id]));
    });
  }
}

/** Tokens that are found in a text before it is cut into pieces: the longest of those that begin first. */
class AddedTokens {
  /** `tokens` are as in tokenizer.json; the id is null where the content is text, such as "</s>" in a sentence. */
  constructor(tokens, spaces) {
    this.tokens = new Map(tokens.map((token) => [token.content, token]));
    const longestFirst = [...this.tokens.keys()].sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.pattern = new RegExp(escaped.join("|"), "gu");
    this.spacesAtEnd = new RegExp(`[${spaces}]*$`, "u");
    this.spacesAtStart = new RegExp(`^[${spaces}]*`, "u");
  }

  split(text) {
    if (!this.tokens.size) return [text];
    const parts = [];
    let start = 0;
    for (const { 0: content, index } of text.matchAll(this.pattern)) {
      const { id, lstrip, rstrip } = this.tokens.get(content);
      if (id === null) continue;
      const before = text.slice(start, index); // empty where the spaces of the token before reach beyond this one
      parts.push(lstrip ? before.replace(this.spacesAtEnd, "") : before, id);
      start = index + content.length;
      if (rstrip) start += this.spacesAtStart.exec(text.slice(start))[0].length;
    }
    return [...parts, text.slice(start)];
  }
}

/**
 * Write classes of characters as they stand inside the brackets of a regular expression: the names L, M, N and s have
 * lists [first, last, first, last, ...].
 */
function listCharacters(characters) {
  const hex = (code) => `\\u{${code.toString(16)}}`;
  const write = (ends) => ends.map((end, i) => (i % 2 ? `-${hex(end)}` : hex(end))).join("");
  return Object.fromEntries(Object.entries(characters).map(([name, ends]) => [name, write(ends)]));
}

/** Write a pattern of tokenizer.json for JavaScript: with lists of characters for \p{L}, \p{M}, \p{N}, \s and \S. */
function translatePattern(pattern, lists) {
  // A class stands inside brackets, as in [^\s\p{L}\p{N}], or by itself.
  return pattern.replace(/\[[^\]]*\]|\\p\{(\w)\}|\\([sS])/g, (found, category, space) => {
    if (category) return `[${lists[category]}]`;
    if (space) return `[${space === "S" ? "^" : ""}${lists.s}]`;
    return found.replace(/\\p\{(\w)\}|\\(s)/g, (_, inner, innerSpace) => lists[inner ?? innerSpace]);
  });
}

const UTF8 = new TextEncoder();

/**
 * The characters that stand for bytes in the vocabulary, as in GPT-2: printable ones for themselves, the others by the
 * characters from U+0100 on. A space is "\u0120".
 */
const BYTE_CHARACTERS = (() => {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();
const BYTES = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** The bytes that a token stands for; an added token with other characters stands for its own UTF-8. */
function bytesOf(token) {
  const bytes = Array.from(token, (character) => BYTES.get(character));
  return bytes.includes(undefined) ? Array.from(UTF8.encode(token)) : bytes;
}

/** Text of bytes in UTF-8, a byte order mark included. */
function textOf(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
}

/** Bytes as text, those that are no whole character as <0xE3>. */
function readable(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; ) {
    const length = characterLength(bytes, i);
    text += length
      ? textOf(bytes.slice(i, i + length))
      : `<0x${bytes[i].toString(16).toUpperCase().padStart(2, "0")}>`;
    i += length || 1;
  }
  return text;
}

/** How many bytes from place i on are one character of UTF-8; 0 if none. */
function characterLength(bytes, i) {
  for (let length = 1; length <= 4 && i + length <= bytes.length; length++) {
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes.slice(i, i + length)));
      return length;
    } catch {
      // not yet, or not at all
    }
  }
  return 0;
}
