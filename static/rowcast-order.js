// How rows are sorted: as Postgres sorts them, told by the types of the columns.
//
// Values arrive as `to_json` writes them, so a bigger number may be a shorter text and a timestamp before Christ a
// later one. Each type has its comparison here. Text is compared by code point, which is `collate "C"` in a database
// that speaks UTF-8; JavaScript's own `<` compares UTF-16 units and differs beyond U+FFFF. Types whose text does not
// tell their order (intervals, enums, json, arrays) are sorted by their text: stable, but not Postgres' order.
// This file knows nothing of keys, channels or frames.

/**
 * @typedef {import("./rowcast.js").Row} Row
 * @typedef {import("./rowcast.js").Form} Form
 * @typedef {(a: any, b: any) => number} Compare
 */

/**
 * A total order over the rows of a channel: its `order`, then its key.
 *
 * @param {Form} form
 * @returns {(a: Row, b: Row) => number}
 */
export function rowOrder(form) {
  const types = new Map(form.columns.map((column) => [column.name, column.type]));
  const named = new Set(form.order.map((by) => by.column));
  /** @type {Form["order"]} */
  const ties = form.key.filter((name) => !named.has(name)).map((column) => ({ column, dir: "asc", nulls: "last" }));
  const steps = [...form.order, ...ties].map((by) => ({
    column: by.column,
    sign: by.dir === "desc" ? -1 : 1,
    nulls: by.nulls === "first" ? -1 : 1,
    compare: comparison(types.get(by.column) ?? "text"),
  }));
  return (a, b) => {
    for (const { column, sign, nulls, compare } of steps) {
      const x = a[column];
      const y = b[column];
      if (x === y) continue;
      const xMissing = x === null || x === undefined;
      const yMissing = y === null || y === undefined;
      if (xMissing || yMissing) {
        if (xMissing && yMissing) continue;
        return xMissing ? nulls : -nulls;
      }
      const difference = compare(x, y);
      if (difference !== 0) return sign * difference;
    }
    return 0;
  };
}

/**
 * The comparison of a type's values, nulls apart. Negative, zero or positive.
 *
 * @param {string} type as `subscribed` names it: `int4`, `numeric`, `text[]`
 * @returns {Compare}
 */
export function comparison(type) {
  switch (type) {
    case "int2":
    case "int4":
    case "oid":
    case "float4":
    case "float8":
      return byNumber;
    case "int8":
      return byInteger;
    case "numeric":
      return byDecimal;
    case "bool":
      return (a, b) => Number(a) - Number(b);
    case "date":
    case "timestamp":
    case "timestamptz":
      return byMoment;
    case "bpchar":
      return (a, b) => byCodePoint(String(a).replace(/ +$/, ""), String(b).replace(/ +$/, ""));
    default:
      return (a, b) => byCodePoint(textOf(a), textOf(b));
  }
}

/** Numbers, and the texts `NaN`, `Infinity`, `-Infinity`. NaN is the greatest. @type {Compare} */
function byNumber(a, b) {
  const x = Number(a);
  const y = Number(b);
  if (x < y) return -1;
  if (x > y) return 1;
  return Number(Number.isNaN(x)) - Number(Number.isNaN(y));
}

/** An int8 in any of its three forms, also mixed: a number where it is safe, a text where it is not. @type {Compare} */
function byInteger(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  const x = BigInt(a);
  const y = BigInt(b);
  return x < y ? -1 : x > y ? 1 : 0;
}

/** Decimal texts of any length, without going through floating point. @type {Compare} */
function byDecimal(a, b) {
  const x = String(a);
  const y = String(b);
  const xPlace = decimalPlace(x);
  const yPlace = decimalPlace(y);
  if (xPlace !== yPlace) return xPlace - yPlace;
  if (xPlace === -1) return byMagnitude(y.slice(1), x.slice(1));
  return xPlace === 1 ? byMagnitude(x, y) : 0;
}

/** Where a decimal stands: -Infinity, negative, zero, positive, Infinity, NaN. @param {string} text */
function decimalPlace(text) {
  if (text === "NaN") return 3;
  if (text === "Infinity") return 2;
  if (text === "-Infinity") return -2;
  if (!/[1-9]/.test(text)) return 0;
  return text.startsWith("-") ? -1 : 1;
}

/** Decimal texts without a sign. @param {string} a @param {string} b */
function byMagnitude(a, b) {
  const [xWhole = "", xFraction = ""] = a.replace(/^0+/, "").split(".");
  const [yWhole = "", yFraction = ""] = b.replace(/^0+/, "").split(".");
  if (xWhole.length !== yWhole.length) return xWhole.length - yWhole.length;
  if (xWhole !== yWhole) return xWhole < yWhole ? -1 : 1;
  const x = xFraction.replace(/0+$/, "");
  const y = yFraction.replace(/0+$/, "");
  return x < y ? -1 : x > y ? 1 : 0;
}

/** ISO dates and timestamps in UTC: years of any length, ` BC`, `infinity` and `-infinity`. @type {Compare} */
function byMoment(a, b) {
  const x = moment(String(a));
  const y = moment(String(b));
  if (x.year !== y.year) return x.year < y.year ? -1 : 1;
  return x.rest < y.rest ? -1 : x.rest > y.rest ? 1 : 0;
}

/**
 * The year, counted without a gap (1 BC is 0), and the rest, which sorts as text: `+` of the zone and the end of the
 * text both come before the `.` and the digits of a fraction.
 *
 * @param {string} text
 */
function moment(text) {
  if (text === "infinity") return { year: Infinity, rest: "" };
  if (text === "-infinity") return { year: -Infinity, rest: "" };
  const dash = text.indexOf("-");
  const year = Number(text.slice(0, dash));
  return text.endsWith(" BC")
    ? { year: 1 - year, rest: text.slice(dash, -3) }
    : { year, rest: text.slice(dash) };
}

/**
 * By Unicode code point. UTF-16 orders surrogates (of code points past U+FFFF) below U+E000 to U+FFFF: only there the
 * first unit that differs has to be looked at again.
 *
 * @param {string} a @param {string} b
 */
export function byCodePoint(a, b) {
  const length = Math.min(a.length, b.length);
  for (let index = 0; index < length; index += 1) {
    const x = a.charCodeAt(index);
    const y = b.charCodeAt(index);
    if (x === y) continue;
    const xSurrogate = x >= 0xd800 && x <= 0xdfff;
    const ySurrogate = y >= 0xd800 && y <= 0xdfff;
    if (xSurrogate !== ySurrogate) {
      if (xSurrogate && y >= 0xe000) return 1;
      if (ySurrogate && x >= 0xe000) return -1;
    }
    return x - y;
  }
  return a.length - b.length;
}

/** @param {unknown} value */
function textOf(value) {
  return typeof value === "string" ? value : (JSON.stringify(value, bigintAsText) ?? "");
}

/** @param {string} _name @param {unknown} value */
function bigintAsText(_name, value) {
  return typeof value === "bigint" ? String(value) : value;
}
