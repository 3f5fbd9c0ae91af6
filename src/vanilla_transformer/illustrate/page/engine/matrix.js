// Matrices of 32-bit floats, and the few operations that the paper's formulas are made of.
//
// A matrix is {data: Float32Array, rows, cols}; row i is data[i * cols .. (i + 1) * cols - 1]. Sums are taken in 64
// bits and rounded once, when they are stored.

export function zeros(rows, cols) {
  return { data: new Float32Array(rows * cols), rows, cols };
}

/** View row i of a matrix, a Float32Array of length cols. */
export function row(matrix, i) {
  return matrix.data.subarray(i * matrix.cols, (i + 1) * matrix.cols);
}

/** View all rows of a matrix. */
export function rows(matrix) {
  return Array.from({ length: matrix.rows }, (_, i) => row(matrix, i));
}

/** Copy columns start .. end - 1: [rows, cols] to [rows, end - start]. */
export function columns(matrix, start, end) {
  const part = zeros(matrix.rows, end - start);
  for (let i = 0; i < matrix.rows; i++) {
    part.data.set(row(matrix, i).subarray(start, end), i * part.cols);
  }
  return part;
}

/** Put matrices of equally many rows side by side. */
export function concatenate(parts) {
  const joined = zeros(
    parts[0].rows,
    parts.reduce((cols, part) => cols + part.cols, 0),
  );
  let start = 0;
  for (const part of parts) {
    for (let i = 0; i < part.rows; i++) joined.data.set(row(part, i), i * joined.cols + start);
    start += part.cols;
  }
  return joined;
}

export function add(a, b) {
  const sum = zeros(a.rows, a.cols);
  for (let i = 0; i < sum.data.length; i++) sum.data[i] = a.data[i] + b.data[i];
  return sum;
}

export function map(matrix, f) {
  return { ...matrix, data: matrix.data.map((x) => f(x)) };
}

const ROWS_AT_ONCE = 4;

/** a b^T: [n, d] times [m, d] gives [n, m], the dot product of each row of a with each row of b. */
export function timesTransposed(a, b) {
  const product = zeros(a.rows, b.rows);
  const block = new Float64Array(ROWS_AT_ONCE * a.cols); // of a; rows beyond its last are zero
  for (let first = 0; first < a.rows; first += ROWS_AT_ONCE) {
    block.fill(0);
    block.set(a.data.subarray(first * a.cols, (first + ROWS_AT_ONCE) * a.cols));
    if (first + 1 === a.rows) dotProductsOfOne(block, b, product.data.subarray(first * b.rows));
    else dotProductsOfFour(block, b, product.data.subarray(first * b.rows));
  }
  return product;
}

/** Four rows at a time: each number of b is read once for all of them. */
function dotProductsOfFour(four, b, product) {
  const width = b.cols;
  const count = b.rows;
  const numbers = b.data;
  for (let j = 0; j < count; j++) {
    const start = j * width;
    let first = 0;
    let second = 0;
    let third = 0;
    let fourth = 0;
    for (let k = 0; k < width; k++) {
      const number = numbers[start + k];
      first += four[k] * number;
      second += four[width + k] * number;
      third += four[2 * width + k] * number;
      fourth += four[3 * width + k] * number;
    }
    // Beyond the last row the indices are beyond the array, where nothing is written.
    product[j] = first;
    product[count + j] = second;
    product[2 * count + j] = third;
    product[3 * count + j] = fourth;
  }
}

/** One row: four sums at a time, which do not wait for each other. */
function dotProductsOfOne(one, b, product) {
  const width = b.cols;
  const numbers = b.data;
  const last = width - (width % 4);
  for (let j = 0; j < b.rows; j++) {
    const start = j * width;
    let first = 0;
    let second = 0;
    let third = 0;
    let fourth = 0;
    for (let k = 0; k < last; k += 4) {
      first += one[k] * numbers[start + k];
      second += one[k + 1] * numbers[start + k + 1];
      third += one[k + 2] * numbers[start + k + 2];
      fourth += one[k + 3] * numbers[start + k + 3];
    }
    for (let k = last; k < width; k++) first += one[k] * numbers[start + k];
    product[j] = first + second + third + fourth;
  }
}

/** a b: [n, m] times [m, d] gives [n, d], each row a sum of the rows of b weighted with a row of a. */
export function times(a, b) {
  const product = zeros(a.rows, b.cols);
  const sums = new Float64Array(b.cols);
  for (let i = 0; i < a.rows; i++) {
    sums.fill(0);
    for (let k = 0; k < a.cols; k++) {
      const weight = a.data[i * a.cols + k];
      for (let j = 0; j < b.cols; j++) sums[j] += weight * b.data[k * b.cols + j];
    }
    product.data.set(sums, i * b.cols);
  }
  return product;
}

/** x W^T + b: [n, d_in] to [n, d_out]. `layer` is {weight: [d_out, d_in], bias: [1, d_out]}. */
export function linear(x, { weight, bias }) {
  const y = timesTransposed(x, weight);
  for (let i = 0; i < y.rows; i++) {
    for (let j = 0; j < y.cols; j++) y.data[i * y.cols + j] += bias.data[j];
  }
  return y;
}

/** Softmax of each row. A row's greatest value is taken off first, so that no exponential overflows. */
export function softmax(scores) {
  const weights = zeros(scores.rows, scores.cols);
  for (let i = 0; i < scores.rows; i++) {
    const exponentials = Float64Array.from(row(scores, i));
    const greatest = exponentials.reduce((a, b) => Math.max(a, b));
    let sum = 0;
    for (let j = 0; j < exponentials.length; j++) sum += exponentials[j] = Math.exp(exponentials[j] - greatest);
    for (let j = 0; j < exponentials.length; j++) weights.data[i * weights.cols + j] = exponentials[j] / sum;
  }
  return weights;
}

/** Logarithm of the softmax of each row. */
export function logSoftmax(scores) {
  const logs = zeros(scores.rows, scores.cols);
  for (let i = 0; i < scores.rows; i++) {
    const values = row(scores, i);
    const greatest = values.reduce((a, b) => Math.max(a, b));
    let sum = 0;
    for (const value of values) sum += Math.exp(value - greatest);
    const logSum = Math.log(sum);
    for (let j = 0; j < values.length; j++) logs.data[i * logs.cols + j] = values[j] - greatest - logSum;
  }
  return logs;
}

/** Layer normalization: each row gets mean 0 and variance 1, then a weight and a bias for each column. */
export function layerNorm(x, { weight, bias, epsilon }) {
  const normalized = zeros(x.rows, x.cols);
  for (let i = 0; i < x.rows; i++) {
    const values = row(x, i);
    let mean = 0;
    for (const value of values) mean += value / x.cols;
    let variance = 0;
    for (const value of values) variance += (value - mean) ** 2 / x.cols;
    const scale = 1 / Math.sqrt(variance + epsilon);
    for (let j = 0; j < x.cols; j++) {
      normalized.data[i * x.cols + j] = (values[j] - mean) * scale * weight.data[j] + bias.data[j];
    }
  }
  return normalized;
}
