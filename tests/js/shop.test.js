import assert from "node:assert/strict";
import { test } from "node:test";

import { Agreement, Latency, newest, Rate, STATUSES, Tally, tenThousandths } from "../../static/shop.js";

const order = (id, status, total, placed_at = "2026-01-01T00:00:00+00:00") => ({
  id,
  customer_id: 1,
  product_id: 1,
  quantity: 1,
  status,
  total,
  placed_at,
});

test("the tally after any changes is the tally of the rows", () => {
  const kept = new Map();
  const tally = new Tally();
  for (let step = 0; step < 500; step += 1) {
    const id = (step * 7919) % 40;
    const held = kept.get(id);
    if (held && step % 3 === 0) {
      kept.delete(id);
      tally.apply({ rows: [], gone: [held] });
    } else {
      const next = order(id, STATUSES[step % 5], `${step}.1${step % 10}`);
      kept.set(id, next);
      tally.apply({ rows: [next], gone: [] });
    }
  }
  const fresh = new Tally();
  fresh.apply({ rows: [...kept.values()].reverse(), gone: [] });
  assert.deepEqual(tally.byStatus, fresh.byStatus);
  assert.equal(tally.fingerprint, fresh.fingerprint);
  assert.equal(tally.count, kept.size);
  const [first] = kept.values();
  fresh.apply({ rows: [{ ...first, quantity: 2 }], gone: [] });
  assert.notEqual(tally.fingerprint, fresh.fingerprint);
});

test("money is exact", () => {
  assert.equal(tenThousandths("0.1") + tenThousandths("0.2"), tenThousandths("0.3"));
  assert.equal(tenThousandths("-12.5"), -125_000n);
  assert.equal(tenThousandths("NaN"), 0n);
});

test("the newest orders are by time, then by id", () => {
  const at = (second) => `2026-01-01T00:00:${String(second).padStart(2, "0")}+00:00`;
  const orders = [order(1, "open", "1", at(9)), order(2, "open", "1", at(3)), order(3, "open", "1", at(5)), order(4, "open", "1", at(5))];
  assert.deepEqual(newest(orders, 3).map((each) => each.id), [1, 4, 3]);
  assert.deepEqual(newest(orders, 9).map((each) => each.id), [1, 4, 3, 2]);
});

test("rates fall into their seconds", () => {
  const rate = new Rate(3);
  rate.add(10_100, 5);
  rate.add(10_900, 1);
  rate.add(12_000, 2);
  assert.deepEqual(rate.last(12_500), [{ rows: 6, steps: 2 }, { rows: 0, steps: 0 }, { rows: 2, steps: 1 }]);
});

test("latency has a median and an end", () => {
  const latency = new Latency(3);
  assert.equal(latency.quantile(0.5), null);
  for (const ms of [100, 1, 3, 2]) latency.add(ms);
  assert.equal(latency.quantile(0.5), 2);
  assert.equal(latency.quantile(0.95), 3);
});

test("tabs are compared where both stood, whoever came first", () => {
  const agreement = new Agreement();
  agreement.mine("e.1", "a");
  agreement.theirs("tab", 0, "e.1", "a");
  agreement.theirs("tab", 0, "e.2", "b");
  agreement.theirs("tab", 0, "e.3", "c");
  agreement.mine("e.3", "x");
  assert.deepEqual([agreement.compared, agreement.different, agreement.tabs(1)], [2, 1, 1]);
  assert.equal(agreement.tabs(9_000), 0);
});
