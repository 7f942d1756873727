// Each list is in the order in which Postgres sorts it (`collate "C"` for text), and the client has to agree.

import assert from "node:assert/strict";
import { test } from "node:test";

import { comparison, rowOrder } from "../../static/rowcast-order.js";

const ascending = {
  int4: [-5, 0, 7, 10],
  int8: ["-9223372036854775808", -3, "2", 10, "9007199254740993", 9007199254740994n, "9223372036854775807"],
  float8: ["-Infinity", -1.5, 0, 2e300, "Infinity", "NaN"],
  numeric: [
    "-Infinity",
    "-100000000000000000000",
    "-10.5",
    "-10.49",
    "-0.001",
    "0.00",
    "0.0009",
    "0.001",
    "1",
    "1.00000000000000000001",
    "9.99",
    "10",
    "99999999999999999999.1",
    "99999999999999999999.10000001",
    "Infinity",
    "NaN",
  ],
  bool: [false, true],
  text: ["", "B", "a", "aa", "z", "é", "\ue000", "\uffff", "😀", "😁"],
  uuid: ["0a000000-0000-0000-0000-000000000000", "a0000000-0000-0000-0000-000000000000"],
  date: ["-infinity", "0044-03-15 BC", "0001-12-31 BC", "0001-01-01", "2024-02-29", "10000-01-01", "infinity"],
  timestamptz: [
    "-infinity",
    "0044-03-15T00:00:00+00:00 BC",
    "0044-03-15T00:00:00.5+00:00 BC",
    "2024-01-01T00:00:00+00:00",
    "2024-01-01T00:00:00.1+00:00",
    "2024-01-01T00:00:00.12+00:00",
    "2024-01-01T00:00:00.123456+00:00",
    "2024-01-01T00:00:01+00:00",
    "12024-01-01T00:00:00+00:00",
    "infinity",
  ],
  timestamp: ["2024-01-01T00:00:00", "2024-01-01T00:00:00.5", "2024-01-01T00:00:01"],
};

for (const [type, values] of Object.entries(ascending)) {
  test(`${type} sorts as in Postgres`, () => {
    const compare = comparison(type);
    values.forEach((x, at) => {
      values.forEach((y, other) => {
        assert.equal(Math.sign(compare(x, y)), Math.sign(at - other), `${x} against ${y}`);
      });
    });
  });
}

test("equal values in different spellings are ties", () => {
  assert.equal(comparison("numeric")("1.50", "1.5"), 0);
  assert.equal(comparison("numeric")("0", "0.000"), 0);
  assert.equal(comparison("int8")("7", 7n), 0);
  assert.equal(comparison("bpchar")("a  ", "a"), 0);
  assert.equal(comparison("jsonb")({ a: 1 }, { a: 1 }), 0);
});

test("nulls stand where the order says, whatever the direction, and the key breaks ties", () => {
  const form = {
    key: ["id"],
    columns: [
      { name: "id", type: "int8" },
      { name: "n", type: "int4" },
    ],
  };
  const rows = [
    { id: "10", n: 1 },
    { id: "9", n: 1 },
    { id: "1", n: null },
    { id: "2", n: 5 },
  ];
  const sorted = (dir, nulls) =>
    [...rows].sort(rowOrder({ ...form, order: [{ column: "n", dir, nulls }] })).map((row) => row.id);
  assert.deepEqual(sorted("asc", "last"), ["9", "10", "2", "1"]);
  assert.deepEqual(sorted("asc", "first"), ["1", "9", "10", "2"]);
  assert.deepEqual(sorted("desc", "first"), ["1", "2", "9", "10"]);
  assert.deepEqual(sorted("desc", "last"), ["2", "9", "10", "1"]);
});
