// The rows of a channel: keyed, sorted, and changed without touching anything a listener may still hold.
//
// A row object is never altered: a change makes a new one. `list` is a new array after every change and the same array
// until then, so that it fits `useSyncExternalStore`. One change among 10,000 rows costs a binary search and one copy
// of the array, never a sort. This file does not know frames' order, positions or sockets.

import { rowOrder } from "./rowcast-order.js";

/**
 * @typedef {import("./rowcast.js").Row} Row
 * @typedef {import("./rowcast.js").Form} Form
 * @typedef {import("./rowcast.js").Change<Row>} Change
 * @typedef {"number" | "string" | "bigint"} Int8
 *
 * What a page of a `snapshot` or `delta` frame holds.
 * @typedef {{
 *   rows?: Record<string, any>[],
 *   gone?: { key: unknown[], why?: string }[],
 *   large?: { key: unknown[], columns: Record<string, number> }[],
 * }} Page
 */

/** @type {readonly Row[]} */
export const NO_ROWS = Object.freeze([]);

/** @type {Change} */
export const NO_CHANGE = Object.freeze({ rows: NO_ROWS, gone: NO_ROWS });

/** Types whose key and cell values are texts on the wire, so that no digit is lost. */
const AS_TEXT = new Set(["int8", "numeric"]);
const AS_NUMBER = new Set(["int2", "int4", "oid", "float4", "float8"]);

export class Rows {
  /** Sorted. Replaced, never altered. @type {readonly Row[]} */
  list = NO_ROWS;

  /** @type {Map<string, Row>} by key text */
  #byKey = new Map();

  /** Sizes in bytes of values that were too large to send. @type {Map<string, Record<string, number>>} */
  #large = new Map();

  /** @type {(a: Row, b: Row) => number} */
  #order;

  /** Columns with int8 values, arrays included. @type {string[]} */
  #int8Columns;

  /** @type {(value: any) => any} */
  #int8;

  /** @type {(string | undefined)[]} the key columns' types */
  #keyTypes;

  /** @param {Form} form @param {Int8} int8 */
  constructor(form, int8) {
    this.form = form;
    this.#order = rowOrder(form);
    this.#int8 = int8Reader(int8);
    this.#int8Columns =
      int8 === "string" ? [] : form.columns.filter((column) => /^int8(\[\])*$/.test(column.type)).map((c) => c.name);
    this.#keyTypes = form.key.map((name) => form.columns.find((column) => column.name === name)?.type);
  }

  /**
   * The row with a key: the key's value, or its values in key order.
   *
   * @param {unknown} key
   * @returns {Row | undefined}
   */
  get(key) {
    return this.#byKey.get(this.#askedKey(key));
  }

  /** @param {unknown} key @returns {Readonly<Record<string, number>> | undefined} */
  large(key) {
    return this.#large.get(this.#askedKey(key));
  }

  /**
   * A snapshot: these rows and no others. Rows that `previous` has in the same state keep their object, and if all do,
   * the array too: a page does not redraw what a resync left as it was.
   *
   * @param {Page[]} pages
   * @param {Rows | null} previous
   * @returns {Change} against `previous`
   */
  replace(pages, previous) {
    /** @type {Map<string, Row>} */
    const byKey = new Map();
    const before = previous ? previous.#byKey : null;
    const changed = [];
    for (const page of pages) {
      for (const sent of page.rows ?? []) {
        const key = this.#keyOf(sent);
        const row = this.#decode(sent);
        const held = before?.get(key);
        const same = held !== undefined && equal(held, row);
        byKey.set(key, same ? held : row);
        if (!same) changed.push(row);
      }
    }
    const gone = [];
    for (const [key, row] of before ?? []) if (!byKey.has(key)) gone.push(row);
    this.#byKey = byKey;
    this.#large = new Map();
    for (const page of pages) this.#noteLarge(page);
    const list = [...byKey.values()].sort(this.#order);
    const held = previous?.list;
    this.list = held && held.length === list.length && held.every((row, at) => row === list[at]) ? held : list;
    return { rows: changed, gone };
  }

  /**
   * A delta: rows merge into the row with the same key, an unknown key is a whole row, and what is gone goes.
   *
   * @param {Page[]} pages
   * @returns {Change | null} null, and nothing done, where a row unknown here is not whole: something was missed
   */
  merge(pages) {
    /** @type {{ key: string, sent: Record<string, any>, held: Row | undefined }[]} */
    const arriving = [];
    for (const page of pages) {
      for (const sent of page.rows ?? []) {
        const key = this.#keyOf(sent);
        const held = this.#byKey.get(key);
        if (held === undefined && !this.form.columns.every((column) => Object.hasOwn(sent, column.name))) return null;
        arriving.push({ key, sent, held });
      }
    }
    /** @type {Row[]} */
    const leaving = [];
    const gone = [];
    for (const page of pages) {
      for (const { key: values } of page.gone ?? []) {
        const key = JSON.stringify(values);
        const held = this.#byKey.get(key);
        if (held === undefined) continue;
        this.#byKey.delete(key);
        this.#large.delete(key);
        leaving.push(held);
        gone.push(held);
      }
    }
    /** @type {Row[]} */
    const rows = [];
    for (const { key, sent, held } of arriving) {
      const row = held ? { ...held, ...this.#decode(sent) } : this.#decode(sent);
      this.#byKey.set(key, row);
      this.#forgetLarge(key, sent);
      if (held) leaving.push(held);
      rows.push(row);
    }
    for (const page of pages) this.#noteLarge(page);
    if (leaving.length > 0 || rows.length > 0) this.#reorder(leaving, rows);
    return { rows, gone };
  }

  /** Is this object the present state of its row? @param {Row} row */
  holds(row) {
    return this.#byKey.get(JSON.stringify(this.form.key.map((name, at) => this.#wireValue(row[name], at)))) === row;
  }

  /**
   * Takes rows out of the list and puts others in: finds the places by binary search, then copies once.
   *
   * @param {Row[]} leaving @param {Row[]} arriving
   */
  #reorder(leaving, arriving) {
    const old = this.list;
    const holes = leaving.map((row) => this.#placeOf(row)).sort((a, b) => a - b);
    const sorted = [...arriving].sort(this.#order);
    /** @type {Row[]} */
    const list = [];
    let at = 0;
    let hole = 0;
    const copyTo = (/** @type {number} */ end) => {
      for (; at < end; at += 1) {
        if (holes[hole] === at) hole += 1;
        else list.push(/** @type {Row} */ (old[at]));
      }
    };
    for (const row of sorted) {
      copyTo(this.#lowerBound(row));
      list.push(row);
    }
    copyTo(old.length);
    this.list = list;
  }

  /** @param {Row} row a row of the list */
  #placeOf(row) {
    const at = this.#lowerBound(row);
    return this.list[at] === row ? at : this.list.indexOf(row);
  }

  /** The first place whose row does not come before this one. @param {Row} row */
  #lowerBound(row) {
    let from = 0;
    let to = this.list.length;
    while (from < to) {
      const middle = (from + to) >>> 1;
      if (this.#order(/** @type {Row} */ (this.list[middle]), row) < 0) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  /** The key as the wire writes it; `gone` and `large` carry the same text. @param {Record<string, any>} sent */
  #keyOf(sent) {
    return JSON.stringify(
      this.form.key.map((name) => {
        if (!Object.hasOwn(sent, name)) throw new TypeError(`a row without its key column ${name}`);
        return sent[name];
      }),
    );
  }

  /** @param {unknown} key */
  #askedKey(key) {
    const values = Array.isArray(key) ? key : [key];
    return JSON.stringify(values.map((value, at) => this.#wireValue(value, at)));
  }

  /** A key's value as the wire would write it. @param {unknown} value @param {number} at place in the key */
  #wireValue(value, at) {
    const type = this.#keyTypes[at] ?? "text";
    if (AS_TEXT.has(type)) return String(value);
    if (AS_NUMBER.has(type) && typeof value === "string" && !Number.isNaN(Number(value)) && value !== "Infinity") {
      return value === "-Infinity" ? value : Number(value);
    }
    return typeof value === "bigint" ? Number(value) : value;
  }

  /** @param {Record<string, any>} sent fresh from JSON.parse, ours to alter @returns {Row} */
  #decode(sent) {
    for (const name of this.#int8Columns) {
      if (Object.hasOwn(sent, name)) sent[name] = this.#int8(sent[name]);
    }
    return sent;
  }

  /** A value that arrives takes the place of one that was too large. @param {string} key @param {object} sent */
  #forgetLarge(key, sent) {
    const large = this.#large.get(key);
    if (large === undefined) return;
    const left = Object.entries(large).filter(([name]) => !Object.hasOwn(sent, name));
    if (left.length > 0) this.#large.set(key, Object.fromEntries(left));
    else this.#large.delete(key);
  }

  /** @param {Page} page */
  #noteLarge(page) {
    for (const { key: values, columns } of page.large ?? []) {
      const key = JSON.stringify(values);
      if (this.#byKey.has(key)) this.#large.set(key, { ...this.#large.get(key), ...columns });
    }
  }
}

/**
 * What happened between two states a listener saw, when several changes took effect together.
 *
 * @param {Change[]} changes in order
 * @param {Rows | null} rows as they are now
 * @returns {Change}
 */
export function together(changes, rows) {
  if (changes.length <= 1) return changes[0] ?? NO_CHANGE;
  return {
    rows: changes.flatMap((change) => change.rows.filter((row) => rows?.holds(row))),
    gone: changes.flatMap((change) => change.gone.filter((row) => !rows?.get(keyValues(row, rows)))),
  };
}

/** @param {Row} row @param {Rows} rows */
function keyValues(row, rows) {
  return rows.form.key.map((name) => row[name]);
}

/** @param {Int8} int8 @returns {(value: any) => any} */
function int8Reader(int8) {
  /** @param {any} value @returns {any} */
  const read = (value) => {
    if (Array.isArray(value)) return value.map(read);
    if (typeof value !== "string") return value;
    if (int8 === "bigint") return BigInt(value);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  };
  return read;
}

/** Are two JSON values equal? int8 values may be bigints. @param {any} a @param {any} b @returns {boolean} */
function equal(a, b) {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const names = Object.keys(a);
  return (
    names.length === Object.keys(b).length && names.every((name) => Object.hasOwn(b, name) && equal(a[name], b[name]))
  );
}
