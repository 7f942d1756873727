// One channel of one connection: its pages, its position, and the rows they make.
//
// The frames of a channel are a snapshot, then deltas, each in pages that take effect with the last one. What proves
// that nothing was missed is the position: a delta that continues from above it is a gap. Nothing here sends, waits or
// tells anybody; steps over several channels are the connection's affair.

import { Rows } from "./rowcast-rows.js";

/**
 * @typedef {import("./rowcast-rows.js").Page} Page
 * @typedef {import("./rowcast-rows.js").Change} Change
 * @typedef {import("./rowcast-rows.js").Int8} Int8
 * @typedef {import("./rowcast.js").Form} Form
 *
 * @typedef {{ op: "subscribed", id: number, ch: number, tag: string, epoch: string, version: number,
 *   resumed?: boolean, shared?: boolean } & Form} Subscribed
 * @typedef {{ op: "snapshot", ch: number, version: number, more?: boolean } & Page} Snapshot
 * @typedef {{ op: "delta", ch: number, prev: number, version: number, as_of: number, epoch?: string,
 *   more?: boolean } & Page} Delta
 */

/** Something was missed: the channel has to be subscribed again. */
export class Gap extends Error {
  /** @param {string} message @param {boolean} resumable whether the rows are still exact at the position */
  constructor(message, resumable) {
    super(message);
    this.name = "Gap";
    this.resumable = resumable;
  }
}

export class Channel {
  /**
   * Whether `rows` are the channel's rows at `version`. False from a fresh `subscribed` or a `reset` until the
   * snapshot's last page.
   */
  complete = false;

  /** The pages so far of an unfinished snapshot or delta. @type {(Snapshot | Delta)[]} */
  #pages = [];

  /** What the client shows until the snapshot is there. @type {Rows | null} */
  #previous;

  /**
   * @param {Subscribed} said
   * @param {Int8} int8
   * @param {Rows | null} shown what the client shows until now, if anything
   * @param {Channel | null} before what fed it; a resumed channel goes on from there
   */
  constructor(said, int8, shown, before) {
    this.number = said.ch;
    this.tag = said.tag;
    this.epoch = said.epoch;
    /** The highest version told. @type {number} */
    this.version = said.version;
    this.#previous = shown;
    const { key, order, columns } = said;
    /** @type {Rows} */
    this.rows = said.resumed && before ? before.rows : new Rows({ key, order, columns }, int8);
    if (said.resumed) {
      if (!before?.complete || before.tag !== said.tag) throw new Gap("resumed from where we were not", false);
      this.version = Math.max(before.version, said.version);
      this.complete = true;
    }
  }

  /** From where a later connection can go on. */
  get position() {
    return this.complete ? { tag: this.tag, epoch: this.epoch, version: this.version } : null;
  }

  /** The server has begun this channel again: nothing is known until a snapshot's last page. */
  reset() {
    this.#pages = [];
    this.#previous = this.rows;
    this.complete = false;
  }

  /** Complete up to a version, says the server. @param {string} epoch @param {number} version */
  live(epoch, version) {
    if (!this.complete) return;
    this.epoch = epoch;
    this.version = Math.max(this.version, version);
  }

  /** @param {Snapshot} frame @returns {Change | null} null until the last page */
  snapshot(frame) {
    const pages = this.#page(frame);
    if (pages === null) return null;
    // A later reset replaces the same object's rows, so the map to compare with is its own.
    const change = this.rows.replace(pages, this.#previous);
    this.#previous = null;
    this.complete = true;
    this.version = frame.version;
    return change;
  }

  /** @param {Delta} frame @returns {Change | null} null until the last page, or where it is old news */
  delta(frame) {
    if (!this.complete) throw new Gap("a delta before the snapshot", false);
    if (frame.prev > this.version) throw new Gap(`a delta from ${frame.prev}, but we are at ${this.version}`, true);
    const pages = this.#page(frame);
    if (pages === null) return null;
    if (frame.version < this.version) return null;
    const change = this.rows.merge(pages);
    if (change === null) throw new Gap("part of a row that is not here", false);
    const epoch = pages.find((page) => "epoch" in page && page.epoch);
    if (epoch && "epoch" in epoch && epoch.epoch) this.epoch = epoch.epoch;
    this.version = frame.version;
    return change;
  }

  /**
   * Collects a page. All pages, once the last is there.
   *
   * @template {Snapshot | Delta} F
   * @param {F} frame
   * @returns {F[] | null}
   */
  #page(frame) {
    const first = this.#pages[0];
    if (first && (first.op !== frame.op || first.version !== frame.version)) {
      this.#pages = [];
      throw new Gap(`a ${frame.op} at ${frame.version} among pages of a ${first.op} at ${first.version}`, true);
    }
    this.#pages.push(frame);
    if (frame.more) return null;
    const pages = /** @type {F[]} */ (this.#pages);
    this.#pages = [];
    return pages;
  }
}
