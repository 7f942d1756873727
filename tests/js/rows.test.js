import assert from "node:assert/strict";
import { test } from "node:test";

import { Rows } from "../../static/rowcast-rows.js";
import { rowOrder } from "../../static/rowcast-order.js";

const form = {
  key: ["id"],
  order: [
    { column: "rank", dir: "desc", nulls: "first" },
    { column: "id", dir: "asc", nulls: "last" },
  ],
  columns: [
    { name: "id", type: "int4" },
    { name: "rank", type: "int4" },
    { name: "note", type: "text" },
  ],
};

const row = (id, rank, note = "") => ({ id, rank, note });
const ids = (rows) => rows.list.map((each) => each.id);

test("deltas keep the rows sorted, row objects whole, and arrays as they were", () => {
  const rows = new Rows(form, "number");
  rows.replace([{ rows: [row(1, 5), row(2, 9), row(3, 7)] }], null);
  assert.deepEqual(ids(rows), [2, 3, 1]);
  const before = rows.list;
  const third = rows.get(3);

  const change = rows.merge([{ rows: [{ id: 1, rank: 8 }, row(4, 1)], gone: [{ key: [2] }] }]);
  assert.deepEqual(ids(rows), [1, 3, 4]);
  assert.deepEqual(before.map((each) => each.id), [2, 3, 1], "who holds the old array still has the old state");
  assert.equal(before[2].rank, 5);
  assert.equal(rows.get(3), third);
  assert.deepEqual(rows.get(1), row(1, 8));
  assert.deepEqual(change.rows.map((each) => each.id), [1, 4]);
  assert.deepEqual(change.gone.map((each) => each.id), [2]);
});

test("a changed key is gone under the old and there under the new", () => {
  const rows = new Rows(form, "number");
  rows.replace([{ rows: [row(1, 1, "a")] }], null);
  rows.merge([{ rows: [row(7, 1, "a")], gone: [{ key: [1] }] }]);
  assert.deepEqual(ids(rows), [7]);
  assert.equal(rows.get(1), undefined);
});

test("part of an unknown row is refused, and nothing is done", () => {
  const rows = new Rows(form, "number");
  rows.replace([{ rows: [row(1, 1)] }], null);
  const before = rows.list;
  assert.equal(rows.merge([{ rows: [{ id: 1, rank: 3 }, { id: 2, rank: 4 }], gone: [{ key: [1] }] }]), null);
  assert.equal(rows.list, before);
});

test("a snapshot keeps the objects of rows that are as they were, and the array if all are", () => {
  const rows = new Rows(form, "number");
  rows.replace([{ rows: [row(1, 1), row(2, 2)] }], null);
  const { list } = rows;
  assert.deepEqual(rows.replace([{ rows: [row(2, 2), row(1, 1)] }], rows), { rows: [], gone: [] });
  assert.equal(rows.list, list);
  const change = rows.replace([{ rows: [row(2, 2), row(3, 3)] }], rows);
  assert.deepEqual(change, { rows: [row(3, 3)], gone: [row(1, 1)] });
  assert.equal(rows.get(2), list[0]);
});

test("int8 is a number where that is exact, a text or a bigint as asked; any of them is a key", () => {
  const wide = { key: ["id"], order: [], columns: [{ name: "id", type: "int8" }, { name: "list", type: "int8[]" }] };
  const page = () => [{ rows: [{ id: "9007199254740993", list: ["1", null] }, { id: "12", list: null }] }];
  const decoded = (int8) => {
    const rows = new Rows(wide, int8);
    rows.replace(page(), null);
    for (const key of [12, "12", 12n, [12]]) assert.ok(rows.get(key), `${typeof key} as key`);
    assert.ok(rows.get("9007199254740993"));
    return rows.list;
  };
  assert.deepEqual(decoded("number"), [{ id: 12, list: null }, { id: "9007199254740993", list: [1, null] }]);
  assert.deepEqual(decoded("string"), [{ id: "12", list: null }, { id: "9007199254740993", list: ["1", null] }]);
  assert.deepEqual(decoded("bigint"), [{ id: 12n, list: null }, { id: 9007199254740993n, list: [1n, null] }]);
});

test("values too large to send are named until they arrive", () => {
  const rows = new Rows(form, "number");
  rows.replace([{ rows: [row(1, 1, null)], large: [{ key: [1], columns: { note: 1834021 } }] }], null);
  assert.deepEqual(rows.large(1), { note: 1834021 });
  rows.merge([{ rows: [{ id: 1, rank: 2 }] }]);
  assert.deepEqual(rows.large(1), { note: 1834021 }, "another column's change says nothing of it");
  rows.merge([{ rows: [{ id: 1, rank: 2, note: "short" }] }]);
  assert.equal(rows.large(1), undefined);
});

test("whatever the deltas, the rows are those of a sort from the beginning", () => {
  let seed = 42;
  const random = (below) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648;
    return Math.floor((seed / 2_147_483_648) * below);
  };
  const rank = () => (random(5) === 0 ? null : random(30));
  const rows = new Rows(form, "number");
  const truth = new Map();
  rows.replace([{}], null);
  for (let step = 0; step < 2_000; step += 1) {
    const keys = new Set(Array.from({ length: 1 + random(6) }, () => random(120)));
    const page = { rows: [], gone: [] };
    for (const id of keys) {
      if (random(3) === 0) {
        page.gone.push({ key: [id] });
        truth.delete(id);
      } else {
        const next = row(id, rank(), `s${step}`);
        page.rows.push(truth.has(id) && random(2) === 0 ? { id, rank: next.rank, note: next.note } : next);
        truth.set(id, next);
      }
    }
    rows.merge([page]);
    if (step % 50 === 0 || step > 1_990) assert.deepEqual(rows.list, [...truth.values()].sort(rowOrder(form)));
  }
});

test("one change among 10,000 rows compares a few dozen rows, not all", () => {
  const rows = new Rows(form, "number");
  let reads = 0;
  const counted = (id) => Object.defineProperty(row(id, 0), "rank", { enumerable: true, get: () => ((reads += 1), id % 97) });
  rows.replace([{ rows: Array.from({ length: 10_000 }, (_, id) => counted(id)) }], null);
  reads = 0;
  rows.merge([{ rows: [{ id: 5_000, rank: 3 }] }]);
  assert.ok(reads < 100, `${reads} reads`);
  assert.equal(rows.list.length, 10_000);
});
