// The one place where numbers become text, and the small sums that the pictures need.

const MINUS = "−";

// A value with as many decimals.
export function fixed(value, digits) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : `${MINUS}∞`;
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? MINUS + text : text;
}

// A value of a vector, a score before the softmax, a length: two decimals.
export const number = (value) => fixed(value, 2);

// A probability, a log-probability, a loss or a score of the search: three decimals.
export const probability = (value) => fixed(value, 3);

// A whole number, with a thin space between thousands.
export const count = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");

// Row i of a matrix {data, rows, cols}, without a copy.
export const row = (matrix, i) => matrix.data.subarray(i * matrix.cols, (i + 1) * matrix.cols);

export const at = (matrix, i, j) => matrix.data[i * matrix.cols + j];

export const norm = (vector) => Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));

export const mean = (vector) => vector.reduce((sum, value) => sum + value, 0) / vector.length;

export function deviation(vector) {
  const middle = mean(vector);
  return Math.sqrt(vector.reduce((sum, value) => sum + (value - middle) ** 2, 0) / vector.length);
}

export function distance(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += (one[i] - other[i]) ** 2;
  return Math.sqrt(sum);
}

export function cosine(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum / (norm(one) * norm(other) || 1);
}

// The largest finite absolute value of some vectors, for a common scale; at least a tiny positive number.
export function largest(vectors) {
  let most = 1e-9;
  for (const vector of vectors)
    for (const value of vector) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  return most;
}

// The indices of the k largest values, largest first.
export function top(vector, k) {
  return Array.from(vector.keys())
    .sort((a, b) => vector[b] - vector[a] || a - b)
    .slice(0, k);
}

export const argmax = (vector) => vector.reduce((best, value, i) => (value > vector[best] ? i : best), 0);
