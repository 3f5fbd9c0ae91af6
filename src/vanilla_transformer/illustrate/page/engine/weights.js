// The model's weights: from the text in the page to matrices with names.

import { Model } from "#page/engine/model.js";

/**
 * Make the model of a page.
 *
 * `payload` has "config", "generation", "dtype" and "tensors" ({name: {shape, offset in elements}}); `base64` is the
 * text of all weights in that dtype, little-endian, one after the other.
 */
export function loadModel(payload, base64) {
  const values = decodeWeights(base64, payload.dtype);
  const tensors = {};
  for (const [name, { shape, offset }] of Object.entries(payload.tensors)) {
    const [rows, cols] = shape.length === 2 ? shape : [1, shape[0]];
    tensors[name] = { data: values.subarray(offset, offset + rows * cols), rows, cols };
  }
  return new Model(payload.config, payload.generation, tensors);
}

function decodeWeights(base64, dtype) {
  const characters = atob(base64.trim());
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  if (dtype === "float32") return new Float32Array(bytes.buffer);
  if (dtype === "float16") return Float32Array.from(new Uint16Array(bytes.buffer), halfToNumber);
  throw new Error(`dtype is "${dtype}"; it must be "float32" or "float16".`);
}

/** The number that 16 bits stand for: a sign, 5 bits of exponent, 10 bits of fraction. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
