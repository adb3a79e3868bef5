// Numbers as reports.numbers writes them.

const MINUS = "\u2212";

function threeDigits(value) {
  const size = Math.abs(value);
  return value.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
}

function asFlops(value) {
  if (!Number.isFinite(value)) return "n/a";
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(2).split("e");
  return `${mantissa.endsWith("0") ? mantissa.slice(0, -1) : mantissa}e${Number(exponent)}`;
}

function asCount(value) {
  if (!Number.isFinite(value)) return "n/a";
  if (Math.abs(value) >= 1e15) return asFlops(value);
  for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 0.9995 * scale) return `${threeDigits(value / scale)} ${letter}`;
  }
  return String(Number(value.toPrecision(3)));
}

function asLoss(value) {
  if (!Number.isFinite(value)) return "n/a";
  const text = value.toFixed(3);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", MINUS);
}

function asAmount(value) {
  if (!Number.isFinite(value)) return "n/a";
  if (Math.abs(value) >= 999_500) return asFlops(value);
  if (Math.abs(value) >= 1000) return Number(value.toPrecision(2)).toLocaleString("en");
  return Math.abs(value) >= 0.1 ? threeDigits(value) : String(Number(value.toPrecision(3)));
}

function asShare(value) {
  return Number.isFinite(value) ? `${(100 * value).toFixed(1)}%`.replace("-", MINUS) : "n/a";
}
