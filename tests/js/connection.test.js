import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../static/rowcast.js";
import { Clock, delta, fakeWebSocket, live, settled, snapshot, subscribed } from "./harness.js";

/** A connection that is open, with the subscriptions asked for. */
function opened(t, channels = ["orders"], options = {}) {
  const clock = new Clock(t);
  const WebSocket = fakeWebSocket();
  const connection = connect("http://shop.test/v1/ws", { WebSocket, ...options });
  t.after(() => connection.close());
  const subscriptions = channels.map((channel) => connection.subscribe(channel));
  WebSocket.last?.accept();
  return { clock, WebSocket, connection, subscriptions, socket: WebSocket.last };
}

const open = (id, status = "open") => ({ id, status });

/** Counts a subscription's calls and keeps what they said. */
function listening(subscription) {
  const calls = [];
  subscription.onChange((change) => calls.push({ ...change, state: subscription.state, rows: change.rows.map((r) => r.id) }));
  return calls;
}

test("rows come with the snapshot, change with deltas, and say how fresh they are", (t) => {
  const { socket, connection, subscriptions: [orders] } = opened(t);
  assert.equal(socket.url, "ws://shop.test/v1/ws");
  assert.deepEqual(socket.protocols, ["rowcast.v1"]);
  assert.deepEqual(socket.take("subscribe"), [{ op: "subscribe", id: 1, channel: "orders" }]);
  assert.equal(connection.state, "late", "connected, and nobody has said live");
  assert.equal(orders.state, "loading");

  socket.say(subscribed(1, 7), snapshot(7, 10, [open(2), open(1)]));
  assert.deepEqual(orders.rows, [open(1), open(2)]);
  assert.equal(orders.state, "late");
  socket.say(live(10));
  assert.equal(orders.state, "live");
  socket.say(delta(7, 10, 12, [{ id: 1, status: "paid" }], { gone: [{ key: [2], why: "deleted" }] }));
  assert.deepEqual(orders.rows, [open(1, "paid")]);
  assert.deepEqual(orders.get(1), open(1, "paid"));
  assert.deepEqual(orders.position, { epoch: "e1", version: 12 });
  assert.deepEqual(connection.position, { epoch: "e1", version: 12, asOf: 5012 });
  socket.say(live(13, { state: "dreaming" }));
  assert.equal(connection.state, "late", "an unknown state is late");
});

test("a snapshot takes effect at its last page, with other channels' frames between its pages", (t) => {
  const { socket, subscriptions: [orders, customers] } = opened(t, ["orders", "customers"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)], { more: true }));
  socket.say(subscribed(2, 8), snapshot(8, 10, [open(5)]));
  assert.deepEqual(orders.rows, []);
  assert.equal(orders.state, "loading");
  assert.deepEqual(customers.rows, [open(5)]);
  socket.say(delta(8, 10, 11, [open(6)]), live(11), snapshot(7, 10, [open(2)]));
  assert.deepEqual(orders.rows, [open(1), open(2)]);
  assert.deepEqual(orders.position, { epoch: "e1", version: 10 }, "a live before its last page is not its own");
});

test("a paged delta takes effect at its last page, once", (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  const calls = listening(orders);
  socket.say(delta(7, 10, 20, [open(2)], { more: true }), delta(7, 10, 20, [open(3)], { gone: [{ key: [1] }], more: true }));
  assert.equal(calls.length, 0);
  socket.say(delta(7, 10, 20, [open(4)]));
  assert.deepEqual(calls.map((call) => call.rows), [[2, 3, 4]]);
  assert.deepEqual(orders.rows.map((row) => row.id), [2, 3, 4]);
});

test("a step takes effect together: nobody ever sees one table without the other", (t) => {
  const { socket, connection, subscriptions: [a, b] } = opened(t, ["a", "b"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [{ id: 1, status: 100 }]), subscribed(2, 8), snapshot(8, 10, [{ id: 1, status: 0 }]), live(10));
  const sums = [];
  const sum = () => sums.push(a.get(1).status + b.get(1).status);
  a.onChange(sum);
  b.onChange(sum);
  const steps = [];
  connection.onStep((step) => steps.push(step));
  for (const frame of [{ op: "step", version: 11 }, delta(7, 10, 11, [{ id: 1, status: 60 }]), delta(8, 10, 11, [{ id: 1, status: 30 }])]) {
    socket.say(frame);
    sum();
  }
  socket.say({ op: "pong" }, delta(8, 11, 12, [{ id: 1, status: 40 }]));
  sum();
  socket.say(live(12));
  assert.deepEqual(new Set(sums), new Set([100]));
  assert.equal(sums.length, 4 + 2, "each listener once");
  assert.deepEqual(steps, [{ epoch: "e1", version: 12, asOf: 5012, changed: 2 }]);
});

test("an unfinished step is lost with its connection, and the resume is from before it", async (t) => {
  const { clock, WebSocket, socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  socket.say({ op: "step", version: 11 }, delta(7, 10, 11, [open(2)]));
  socket.end(1006);
  assert.equal(orders.state, "offline");
  assert.deepEqual(orders.rows, [open(1)], "rows stay");
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.take("subscribe"), [
    { op: "subscribe", id: 2, channel: "orders", resume: { tag: "t7", epoch: "e1", version: 10 } },
  ]);
  assert.equal(orders.state, "loading", "connected is not yet subscribed");
  const kept = orders.rows[0];
  WebSocket.last.say(subscribed(2, 3, { tag: "t7", resumed: true }), delta(3, 10, 15, [open(2)]), live(15));
  assert.deepEqual(orders.rows, [open(1), open(2)]);
  assert.equal(orders.rows[0], kept);
  assert.equal(orders.state, "live");
});

test("a resume that is refused replaces the rows at the snapshot's last page, not before", async (t) => {
  const { clock, WebSocket, socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1), open(2)]), live(10));
  socket.end(1012);
  await clock.pass(500);
  const again = WebSocket.last;
  again.accept();
  const calls = listening(orders);
  const kept = orders.get(2);
  again.say(subscribed(2, 4, { epoch: "e2", version: 50 }), snapshot(4, 50, [open(2)], { more: true }));
  assert.deepEqual(orders.rows, [open(1), open(2)]);
  again.say(snapshot(4, 50, [open(3)]));
  assert.deepEqual(orders.rows, [open(2), open(3)]);
  assert.equal(orders.get(2), kept, "a row as it was keeps its object");
  assert.deepEqual(calls.at(-1).rows, [3]);
  assert.deepEqual(calls.at(-1).gone, [open(1)]);
  assert.deepEqual(orders.position, { epoch: "e2", version: 50 });
});

test("a delta from above the position is a gap: subscribed again from where we are", (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(12));
  socket.take("subscribe");
  socket.say(delta(7, 13, 14, [open(9)]));
  assert.deepEqual(orders.rows, [open(1)]);
  assert.deepEqual(socket.take("unsubscribe"), [{ op: "unsubscribe", id: 1 }]);
  assert.deepEqual(socket.take("subscribe"), [
    { op: "subscribe", id: 2, channel: "orders", resume: { tag: "t7", epoch: "e1", version: 12 } },
  ]);
  assert.equal(orders.state, "loading");
  socket.say(delta(7, 14, 15, [open(10)]), { op: "unsubscribed", id: 1 });
  assert.deepEqual(orders.rows, [open(1)], "what was under way is of an unknown channel");
  socket.say(subscribed(2, 7, { resumed: true, version: 12 }), delta(7, 12, 15, [open(9), open(10)]));
  assert.deepEqual(orders.rows.map((row) => row.id), [1, 9, 10]);
});

test("part of an unknown row is a gap too, and then nothing is resumed; a second one waits", async (t) => {
  const { clock, socket } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  socket.take("subscribe");
  socket.say(delta(7, 10, 11, [{ id: 2 }]));
  assert.deepEqual(socket.take("subscribe"), [{ op: "subscribe", id: 2, channel: "orders" }]);
  socket.say(subscribed(2, 7), snapshot(7, 11, [open(1)]), delta(7, 11, 12, [{ id: 3 }]));
  assert.deepEqual(socket.take("subscribe"), []);
  await clock.pass(1_000);
  assert.deepEqual(socket.take("subscribe"), [{ op: "subscribe", id: 3, channel: "orders" }]);
});

test("old news is ignored, and a delta may begin below the position", (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(20));
  socket.say(delta(7, 10, 15, [open(1, "old")]));
  assert.deepEqual(orders.rows, [open(1)]);
  socket.say(delta(7, 10, 21, [open(1, "new")]));
  assert.deepEqual(orders.rows, [open(1, "new")]);
});

test("a reset discards pages and position; the rows stay until the snapshot", async (t) => {
  const { clock, WebSocket, socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  socket.say(delta(7, 10, 11, [open(2)], { more: true }), { op: "reset", ch: 7, why: "resync" });
  assert.equal(orders.state, "loading");
  assert.equal(orders.position, null);
  socket.say(snapshot(7, 12, [open(3)], { more: true }));
  assert.deepEqual(orders.rows, [open(1)]);
  socket.say(snapshot(7, 12, [open(4)]));
  assert.deepEqual(orders.rows, [open(3), open(4)]);
  socket.say({ op: "reset", ch: 7, why: "resync" });
  socket.end(1006);
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.take("subscribe"), [{ op: "subscribe", id: 2, channel: "orders" }]);
});

test("`subscribed` again with other columns replaces the rows at the snapshot", (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  const columns = [{ name: "id", type: "int4" }, { name: "total", type: "numeric" }];
  const order = [{ column: "total", dir: "desc", nulls: "first" }];
  socket.say(subscribed(1, 9, { tag: "new", columns, order, version: 11 }));
  assert.deepEqual(orders.rows, [open(1)]);
  assert.deepEqual(orders.form.columns.length, 2);
  socket.say(snapshot(9, 11, [{ id: 1, total: "9.5" }, { id: 2, total: "10" }]), delta(7, 11, 12, [open(1, "stale")]));
  assert.deepEqual(orders.rows, [{ id: 2, total: "10" }, { id: 1, total: "9.5" }]);
  assert.deepEqual(orders.form.columns, columns);
});

test("equal channels share one subscription, let go a second after the last close", async (t) => {
  const { clock, socket, connection, subscriptions: [first] } = opened(t);
  const second = connection.subscribe("orders");
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  assert.equal(first.rows, second.rows);
  assert.equal(socket.take("subscribe").length, 1);
  first.close();
  assert.equal(first.state, "ended");
  await clock.pass(5_000);
  assert.deepEqual(socket.take("unsubscribe"), []);
  second.close();
  await clock.pass(900);
  const third = connection.subscribe("orders");
  await clock.pass(2_000);
  assert.deepEqual(third.rows, [open(1)]);
  assert.deepEqual(socket.take("unsubscribe"), []);
  third.close();
  await clock.pass(1_000);
  assert.deepEqual(socket.take("unsubscribe"), [{ op: "unsubscribe", id: 1 }]);
  connection.subscribe("orders");
  assert.deepEqual(socket.take("subscribe"), [{ op: "subscribe", id: 2, channel: "orders" }], "a new id, never the old");
});

test("two texts of one channel use the rows of one `ch`, also when one of them goes", async (t) => {
  const { clock, socket, subscriptions: [short, long] } = opened(t, ["orders", "orders?order=id"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), subscribed(2, 7, { shared: true }), live(10));
  assert.deepEqual(long.rows, [open(1)]);
  assert.equal(long.state, "live");
  short.close();
  await clock.pass(1_000);
  socket.say({ op: "unsubscribed", id: 1 }, delta(7, 10, 11, [open(2)]));
  assert.deepEqual(long.rows, [open(1), open(2)]);
});

test("a gap in a shared channel unsubscribes all before it subscribes one", (t) => {
  const { socket } = opened(t, ["orders", "orders?order=id"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), subscribed(2, 7, { shared: true }));
  socket.sent = [];
  socket.say(delta(7, 11, 12, []));
  assert.deepEqual(socket.sent.map((message) => [message.op, message.id]), [
    ["unsubscribe", 1],
    ["unsubscribe", 2],
    ["subscribe", 3],
    ["subscribe", 4],
  ]);
});

test("unknown ops, channels, ids and fields are ignored", (t) => {
  const { socket, subscriptions: [orders], connection } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  socket.say({ op: "sing" }, delta(99, 1, 2, [open(5)]), subscribed(44, 12), { op: "error", id: 44, code: "forbidden", message: "" });
  socket.say(delta(7, 10, 11, [open(2)], { colour: "blue" }));
  assert.deepEqual(orders.rows, [open(1), open(2)]);
  assert.equal(connection.state, "live");
});

test("positions follow the epoch, which a delta may change", async (t) => {
  const { clock, WebSocket, socket } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10), delta(7, 10, 100, [open(2)], { epoch: "e2" }));
  socket.end(1006);
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.take("subscribe")[0].resume, { tag: "t7", epoch: "e2", version: 100 });
});

test("a temporary error is tried again with what we have; a final one ends the subscription and clears it", async (t) => {
  const { clock, socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  socket.take("subscribe");
  socket.say({ op: "error", id: 1, code: "unavailable", message: "busy", retry: true, retry_after_ms: 700 });
  assert.equal(orders.error.code, "unavailable");
  assert.deepEqual(orders.rows, [open(1)]);
  await clock.pass(699);
  assert.equal(socket.take("subscribe").length, 0);
  await clock.pass(1);
  assert.deepEqual(socket.take("subscribe"), [
    { op: "subscribe", id: 2, channel: "orders", resume: { tag: "t7", epoch: "e1", version: 10 } },
  ]);
  const calls = listening(orders);
  socket.say({ op: "error", id: 2, code: "bad_query", message: "what?", at: 6, retry: false });
  assert.equal(orders.state, "ended");
  assert.equal(orders.error.at, 6);
  assert.deepEqual(orders.rows, []);
  assert.equal(calls.length, 1);
  await assert.rejects(orders[Symbol.asyncIterator]().next(), { code: "bad_query" });
});

test("waits grow with full jitter, respect retry_after_ms, and are short again after a good connection", async (t) => {
  const { clock, WebSocket, socket } = opened(t);
  socket.end(1006);
  for (const limitMs of [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]) {
    const count = WebSocket.opened.length;
    await clock.pass(limitMs - 1);
    assert.equal(WebSocket.opened.length, count, `not before ${limitMs} ms`);
    await clock.pass(1);
    assert.equal(WebSocket.opened.length, count + 1);
    WebSocket.last.end(1006);
  }
  await clock.pass(30_000);
  WebSocket.last.accept(60_000);
  await clock.pass(20_000);
  WebSocket.last.end(1013, { code: "overloaded", retry_after_ms: 7_000 });
  const count = WebSocket.opened.length;
  await clock.pass(7_499);
  assert.equal(WebSocket.opened.length, count);
  await clock.pass(1);
  assert.equal(WebSocket.opened.length, count + 1);
});

test("another database behind the same address begins its own versions", async (t) => {
  const { clock, WebSocket, connection, socket, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 900, [open(1)]), live(900));
  socket.end(1006);
  await clock.pass(500);
  WebSocket.last.accept();
  WebSocket.last.say(subscribed(2, 7, { epoch: "e9", version: 3 }), snapshot(7, 3, [open(2)]), live(4, { epoch: "e9" }));
  assert.deepEqual(connection.position, { epoch: "e9", version: 4, asOf: 5004 });
  assert.deepEqual(orders.position, { epoch: "e9", version: 4 });
  assert.deepEqual(orders.rows, [open(2)]);
});

test("a refusal ends one subscription and leaves the others alone", (t) => {
  const { socket, subscriptions: [orders, secrets] } = opened(t, ["orders", "secrets"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), { op: "error", id: 2, code: "forbidden", message: "no", retry: false }, live(10));
  assert.equal(secrets.state, "ended");
  assert.equal(orders.state, "live");
});

test("close codes from 4500 are final, known or not", async (t) => {
  const { clock, WebSocket, socket, connection, subscriptions: [orders] } = opened(t);
  socket.end(4777, { code: "whatever" });
  await clock.pass(100_000);
  assert.equal(WebSocket.opened.length, 1);
  assert.equal(connection.state, "offline");
  assert.equal(connection.error.code, "whatever");
  assert.equal(orders.state, "ended");
});

test("4401 is final with a token as text, and asks the function for a fresh one", async (t) => {
  const { clock, WebSocket, socket } = opened(t, ["orders"], { token: "old" });
  assert.deepEqual(socket.sent[0], { op: "auth", token: "old" });
  socket.end(4401);
  await clock.pass(100_000);
  assert.equal(WebSocket.opened.length, 1);
});

test("a token function is asked when needed: not while its token holds, again for a fresh one", async (t) => {
  const asked = [];
  const tokens = ["a", "b", "b", "c"];
  const token = async (why) => {
    asked.push(why);
    return tokens.shift();
  };
  const { clock, WebSocket } = opened(t, ["orders"], { token });
  await settled();
  const first = WebSocket.last;
  first.accept();
  first.say({ op: "authenticated", sub: "u1", expires_in_ms: 600_000 });
  assert.deepEqual(first.sent[0], { op: "auth", token: "a" });
  first.end(1012);
  await clock.pass(500);
  const second = WebSocket.last;
  second.accept();
  assert.deepEqual(second.sent[0], { op: "auth", token: "a" }, "a restart of the server asks nobody for tokens");
  second.say({ op: "expiring", expires_in_ms: 60_000 });
  await settled();
  assert.deepEqual(second.sent.at(-1), { op: "auth", token: "b" });
  second.end(4401, { code: "token_expired" });
  await clock.pass(1_000);
  assert.equal(WebSocket.last, second, "the same token again is not fresh");
  await clock.pass(2_000);
  assert.notEqual(WebSocket.last, second);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.sent[0], { op: "auth", token: "c" });
  assert.deepEqual(asked, ["connect", "expiring", "expired", "expired"]);
});

test("a token function that fails is tried again after a wait", async (t) => {
  let calls = 0;
  const token = () => {
    calls += 1;
    if (calls === 1) throw new Error("no");
    return "a";
  };
  const { clock, WebSocket, connection } = opened(t, [], { token });
  await settled();
  assert.equal(WebSocket.opened.length, 0);
  assert.equal(connection.error.code, "no_token");
  await clock.pass(500);
  assert.equal(WebSocket.opened.length, 1);
});

test("a token promise that never settles keeps nobody offline for ever", async (t) => {
  const asked = [];
  const never = new Promise(() => {});
  const token = (why) => {
    asked.push(why);
    return asked.length === 1 ? never : Promise.resolve(`t${asked.length}`);
  };
  const { clock, WebSocket, connection } = opened(t, ["orders"], { token });
  await clock.pass(29_999);
  assert.equal(WebSocket.opened.length, 0);
  await clock.pass(1);
  assert.equal(connection.error.code, "no_token");
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.sent[0], { op: "auth", token: "t2" });
  assert.deepEqual(asked, ["connect", "connect"]);
});

test("a refresh whose token promise never settles is tried again while the old token holds", async (t) => {
  let calls = 0;
  const token = () => (++calls === 2 ? new Promise(() => {}) : Promise.resolve(`t${calls}`));
  const { clock, WebSocket } = opened(t, [], { token });
  await settled();
  const socket = WebSocket.last;
  socket.accept(60_000);
  socket.say({ op: "authenticated", sub: "u1", expires_in_ms: 60_000 }, { op: "expiring", expires_in_ms: 60_000 });
  await clock.pass(39_999);
  assert.equal(calls, 2);
  await clock.pass(1);
  assert.deepEqual(socket.take("auth").map((said) => said.token), ["t1", "t3"]);
  assert.equal(WebSocket.opened.length, 1);
});

test("a refused refresh leaves the token that holds, and another is asked for", async (t) => {
  const tokens = ["good", "bad", "better"];
  const { clock, WebSocket, connection } = opened(t, [], { token: async () => tokens.shift() });
  await settled();
  const socket = WebSocket.last;
  socket.accept(60_000);
  socket.say({ op: "authenticated", sub: "u1", expires_in_ms: 600_000 }, { op: "expiring", expires_in_ms: 60_000 });
  await settled();
  socket.say({ op: "error", code: "bad_token", message: "no", retry: false });
  assert.equal(connection.error.code, "bad_token");
  socket.end(1012);
  await clock.pass(500);
  const again = WebSocket.last;
  again.accept(60_000);
  assert.deepEqual(again.take("auth"), [{ op: "auth", token: "good" }], "the one that was taken");
  again.say({ op: "authenticated", sub: "u1", expires_in_ms: 90_000 });
  assert.equal(connection.error, null);
  again.say({ op: "expiring", expires_in_ms: 60_000 });
  await settled();
  assert.deepEqual(again.take("auth"), [{ op: "auth", token: "better" }]);
});

test("a token that expires while its successor is on the way does not make that one stale", async (t) => {
  const asked = [];
  const token = async (why) => {
    asked.push(why);
    return why === "connect" ? "old" : "new";
  };
  const { clock, WebSocket } = opened(t, [], { token });
  await settled();
  const socket = WebSocket.last;
  socket.accept();
  socket.say({ op: "authenticated", sub: "u1", expires_in_ms: 1_000 }, { op: "expiring", expires_in_ms: 500 });
  await settled();
  socket.end(4401, { code: "token_expired" });
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.take("auth"), [{ op: "auth", token: "new" }]);
  assert.deepEqual(asked, ["connect", "expiring", "expired"]);
});

test("a connection that says nothing for three heartbeats is dead", async (t) => {
  const { clock, WebSocket, socket, connection } = opened(t);
  await clock.pass(14_000);
  socket.say(live(10));
  await clock.pass(14_999);
  assert.equal(connection.state, "live");
  await clock.pass(1);
  assert.equal(connection.state, "offline");
  assert.equal(connection.error.code, "silence");
  socket.say(live(11));
  assert.equal(connection.state, "offline", "the dead do not speak");
  await clock.pass(500);
  assert.equal(WebSocket.opened.length, 2);
});

test("a page that is shown again, or online again, looks at once instead of waiting", async (t) => {
  globalThis.window = new EventTarget();
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  t.after(() => {
    delete globalThis.window;
    delete globalThis.document;
  });
  const { clock, WebSocket, socket, connection } = opened(t);
  document.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(socket.take("ping"), [{ op: "ping" }]);
  await clock.pass(2_900);
  socket.say({ op: "pong" });
  await clock.pass(5_000);
  assert.equal(connection.state, "late", "it answered");
  window.dispatchEvent(new Event("online"));
  await clock.pass(3_000);
  assert.equal(connection.state, "offline", "it did not");
  window.dispatchEvent(new Event("online"));
  assert.equal(WebSocket.opened.length, 2);
  WebSocket.last.end(1013, { code: "overloaded", retry_after_ms: 9_000 });
  window.dispatchEvent(new Event("online"));
  assert.equal(WebSocket.opened.length, 2, "the server asked to be left alone");
  connection.close();
});

test("frames that make no sense end the connection, and nothing is resumed", async (t) => {
  const { clock, WebSocket, socket, subscriptions: [orders] } = opened(t);
  t.mock.method(console, "error", () => {});
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  socket.say(delta(7, 10, 11, [{ status: "no key" }]));
  assert.equal(socket.closedWith, 4000);
  await clock.pass(500);
  WebSocket.last.accept();
  assert.deepEqual(WebSocket.last.take("subscribe"), [{ op: "subscribe", id: 2, channel: "orders" }]);
  WebSocket.last.say("{");
  assert.equal(WebSocket.last.closedWith, 4000);
  assert.deepEqual(orders.rows, [open(1)]);
});

test("a heartbeat is no change: listeners of rows stay quiet, the step is told", (t) => {
  const { socket, connection, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), live(10));
  const calls = listening(orders);
  const steps = [];
  connection.onStep((step) => steps.push(step.changed));
  const { rows } = orders;
  socket.say(live(10), live(11));
  assert.equal(calls.length, 0);
  assert.deepEqual(steps, [0, 0]);
  assert.equal(orders.rows, rows);
  assert.deepEqual(orders.position, { epoch: "e1", version: 11 });
});

test("a listener that throws disturbs nobody", (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  t.mock.method(console, "error", () => {});
  orders.onChange(() => {
    throw new Error("mine");
  });
  const calls = listening(orders);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  assert.equal(calls.length, 2);
});

test("iterating gives the rows now and after each step; who is slow gets the latest", async (t) => {
  const { socket, subscriptions: [orders] } = opened(t);
  const seen = [];
  let finished = false;
  const loop = (async () => {
    for await (const rows of orders) {
      seen.push(rows.map((row) => row.id));
    }
    finished = true;
  })();
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  await settled();
  socket.say(delta(7, 10, 11, [open(2)]), delta(7, 11, 12, [open(3)]));
  await settled();
  socket.say(live(12));
  await settled();
  socket.say(delta(7, 12, 13, [], { gone: [{ key: [1] }] }));
  await settled();
  orders.close();
  await loop;
  assert.deepEqual(seen, [[1], [1, 2, 3], [2, 3]]);
  assert.ok(finished);
});

test("close ends everything: no timer is left", async (t) => {
  const { clock, socket, connection, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]));
  connection.close();
  assert.equal(socket.closedWith, 1000);
  assert.equal(orders.state, "ended");
  assert.equal(connection.subscribe("orders").state, "ended");
  assert.equal(clock.waiting, 0);
});

test("a database whose versions began again below is followed from there", (t) => {
  const { socket, connection, subscriptions: [orders] } = opened(t);
  socket.say(subscribed(1, 7), snapshot(7, 40, [open(1)]), live(40));
  socket.say({ op: "step", version: 20 }, subscribed(1, 7, { epoch: "e2", version: 20 }), snapshot(7, 20, [open(2)]));
  socket.say(live(20, { epoch: "e2" }), delta(7, 20, 21, [open(3)]));
  assert.deepEqual(orders.rows, [open(2), open(3)]);
  assert.deepEqual(orders.position, { epoch: "e2", version: 21 });
  assert.deepEqual(connection.position, { epoch: "e2", version: 21, asOf: 5021 });
});

test("two texts of one channel are both told what a resume brings", (t) => {
  const { WebSocket, clock, socket, subscriptions: [one, other] } = opened(t, ["orders", "orders?"]);
  socket.say(subscribed(1, 7), snapshot(7, 10, [open(1)]), subscribed(2, 7, { shared: true }), live(10));
  socket.end(1012);
  return clock.pass(1_000).then(() => {
    const calls = listening(other);
    WebSocket.last.accept();
    const again = { resumed: true, version: 10 };
    WebSocket.last.say(subscribed(3, 9, { ...again, tag: "t7" }), delta(9, 10, 12, [open(2)]));
    WebSocket.last.say(subscribed(4, 9, { tag: "t7", version: 12, shared: true }), live(12));
    assert.deepEqual(one.rows, [open(1), open(2)]);
    assert.deepEqual(other.rows, [open(1), open(2)]);
    assert.deepEqual(calls.flatMap((call) => call.rows), [2], "a listener that applies changes has the new row");
  });
});
