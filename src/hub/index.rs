//! Which live channels of a feed a changed row may concern.
//!
//! ```text
//!   changed row ─┬─ its values of `tenant_id, status` ─▶ channels with tenant_id=eq.7&status=eq.open
//!                ├─ its value of `customer_id` ────────▶ channels with customer_id=eq.42, customer_id=in.(41,42)
//!                ├─ its key ───────────────────────────▶ of those, the channels that have the row now: it may leave them
//!                └─ ───────────────────────────────────▶ channels that nothing pins down: always
//! ```
//!
//! Channels are found by the values that their policy and query pin columns to. One that is not found has neither had the
//! row nor gets it, so it need not hear of the step. The index judges nothing: whoever is found asks its view. A channel is
//! in it while it is live; it joins anew when it was read again, by the schema that it was read with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::entry::{Key, Row, State};
use crate::protocol::ChannelNumber;
use crate::view::View;

/// Combinations of values under which one channel is found at most; a channel with more leaves out the longest lists.
const COMBINATIONS_MAX: usize = 256;

/// Stands between two values; JSON text has no such character.
const BETWEEN: char = '\u{1f}';

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    members: HashMap<ChannelNumber, Member>,
    /// By the id of the feed's schema, which says where the columns stand.
    by_schema: HashMap<Arc<str>, Pins>,
    /// Of the channels that are pinned: who has the row of a key, spare rows too.
    holders: HashMap<Key, Holders>,
}

/// How a channel is found.
#[derive(Debug)]
struct Member {
    schema_id: Arc<str>,
    pin: Option<Pin>,
}

/// The columns that pin a channel down, and the combinations of their values.
#[derive(Debug)]
struct Pin {
    columns: Box<[usize]>,
    values: Vec<Arc<str>>,
}

/// Channels by what they want in the columns of their pin.
type ByValue = HashMap<Arc<str>, HashSet<ChannelNumber>>;

/// The channels of one schema.
#[derive(Debug, Default)]
struct Pins {
    by_columns: HashMap<Box<[usize]>, ByValue>,
    unpinned: HashSet<ChannelNumber>,
}

/// Most rows are held by one channel of a kind.
#[derive(Debug)]
enum Holders {
    One(ChannelNumber),
    /// Ascending.
    Many(Vec<ChannelNumber>),
}

/// Of a step's states, by their place, those that may concern a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Concern {
    All,
    These(Vec<usize>),
}

impl Index {
    /// A channel has become live, with these rows.
    pub(super) fn join<'a>(&mut self, number: ChannelNumber, view: &View, keys: impl Iterator<Item = &'a Key>) {
        let schema_id = view.feed_schema_id().clone();
        let pins = self.by_schema.entry(schema_id.clone()).or_default();
        let pin = Pin::of(view);
        match &pin {
            None => {
                pins.unpinned.insert(number);
            }
            Some(Pin { columns, values }) => {
                let by_value = pins.by_columns.entry(columns.clone()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().insert(number);
                }
            }
        }
        let is_pinned = pin.is_some();
        self.members.insert(number, Member { schema_id, pin });
        for key in keys.take_while(|_| is_pinned) {
            self.add_holder(number, key);
        }
    }

    /// A channel is live no more; these were its rows.
    pub(super) fn leave<'a>(&mut self, number: ChannelNumber, keys: impl Iterator<Item = &'a Key>) {
        let Some(member) = self.members.remove(&number) else { return };
        let Some(pins) = self.by_schema.get_mut(&member.schema_id) else { return };
        match member.pin {
            None => {
                pins.unpinned.remove(&number);
            }
            Some(Pin { columns, values }) => {
                if let Some(by_value) = pins.by_columns.get_mut(&columns) {
                    for value in &values {
                        if let Some(channels) = by_value.get_mut(value) {
                            channels.remove(&number);
                            if channels.is_empty() {
                                by_value.remove(value);
                            }
                        }
                    }
                    if by_value.is_empty() {
                        pins.by_columns.remove(&columns);
                    }
                }
                keys.for_each(|key| self.remove_holder(number, key));
            }
        }
        if self
            .by_schema
            .get(&member.schema_id)
            .is_some_and(|pins| pins.by_columns.is_empty() && pins.unpinned.is_empty())
        {
            self.by_schema.remove(&member.schema_id);
        }
    }

    /// A channel has the rows of these keys now, or has them no more.
    pub(super) fn note<'a>(
        &mut self,
        number: ChannelNumber,
        keys: impl Iterator<Item = &'a Key>,
        has: impl Fn(&Key) -> bool,
    ) {
        if self.members.get(&number).is_none_or(|member| member.pin.is_none()) {
            return;
        }
        for key in keys {
            if has(key) {
                self.add_holder(number, key);
            } else {
                self.remove_holder(number, key);
            }
        }
    }

    /// The channels that states under a schema may concern, in the order of their numbers. Channels that were read under
    /// another schema are all concerned: they have to be read again.
    pub(super) fn concerned(&self, schema_id: &str, states: &[State]) -> BTreeMap<ChannelNumber, Concern> {
        let mut concerned: BTreeMap<ChannelNumber, Concern> = BTreeMap::new();
        let mut sought = String::new();
        let pins = self.by_schema.get(schema_id);
        for (at, state) in states.iter().enumerate() {
            for (columns, by_value) in pins.iter().flat_map(|pins| &pins.by_columns) {
                let Some(row) = &state.row else { break };
                if let Some(channels) = by_value.get(value_of(row, columns, &mut sought)) {
                    channels.iter().for_each(|&number| concern(&mut concerned, number, at));
                }
            }
            match self.holders.get(&state.key) {
                None => {}
                Some(Holders::One(number)) => concern(&mut concerned, *number, at),
                Some(Holders::Many(numbers)) => {
                    numbers.iter().for_each(|&number| concern(&mut concerned, number, at));
                }
            }
        }
        concerned.extend(pins.iter().flat_map(|pins| &pins.unpinned).map(|&number| (number, Concern::All)));
        // As a rule there is one schema, and nothing to look for.
        if self.by_schema.len() > usize::from(pins.is_some()) {
            let others = self.members.iter().filter(|(_, member)| *member.schema_id != *schema_id);
            concerned.extend(others.map(|(&number, _)| (number, Concern::All)));
        }
        concerned
    }

    /// Every live channel.
    pub(super) fn channels(&self) -> impl Iterator<Item = ChannelNumber> {
        self.members.keys().copied()
    }

    pub(super) fn contains(&self, number: ChannelNumber) -> bool {
        self.members.contains_key(&number)
    }

    fn add_holder(&mut self, number: ChannelNumber, key: &Key) {
        match self.holders.get_mut(key) {
            None => {
                self.holders.insert(key.clone(), Holders::One(number));
            }
            Some(Holders::One(one)) if *one == number => {}
            Some(holders @ Holders::One(_)) => {
                let Holders::One(one) = *holders else { return };
                *holders = Holders::Many(vec![one.min(number), one.max(number)]);
            }
            Some(Holders::Many(numbers)) => {
                if let Err(place) = numbers.binary_search(&number) {
                    numbers.insert(place, number);
                }
            }
        }
    }

    fn remove_holder(&mut self, number: ChannelNumber, key: &Key) {
        let is_last = match self.holders.get_mut(key) {
            None => false,
            Some(Holders::One(one)) => *one == number,
            Some(Holders::Many(numbers)) => {
                if let Ok(place) = numbers.binary_search(&number) {
                    numbers.remove(place);
                }
                numbers.is_empty()
            }
        };
        if is_last {
            self.holders.remove(key);
        }
    }

    /// Whether exactly these keys are noted for a channel, if it is pinned; for tests and debug builds.
    #[cfg(test)]
    pub(super) fn holds_exactly(&self, number: ChannelNumber, keys: &HashSet<&Key>) -> bool {
        let noted = self.holders.iter().filter(|(_, holders)| match holders {
            Holders::One(one) => *one == number,
            Holders::Many(numbers) => numbers.contains(&number),
        });
        let noted: HashSet<&Key> = noted.map(|(key, _)| key).collect();
        self.members.get(&number).is_some_and(|member| member.pin.is_none() && noted.is_empty() || noted == *keys)
    }
}

impl Pin {
    /// By all the columns that are pinned, as long as the combinations are few. `None`: nothing pins the channel down.
    fn of(view: &View) -> Option<Self> {
        let mut by_column: BTreeMap<usize, Vec<Arc<str>>> = BTreeMap::new();
        for (column, values) in view.pinned() {
            by_column
                .entry(*column)
                .and_modify(|both| both.retain(|value| values.contains(value)))
                .or_insert_with(|| values.clone());
        }
        let mut shortest_first: Vec<(usize, Vec<Arc<str>>)> = by_column.into_iter().collect();
        shortest_first.sort_by_key(|(_, values)| values.len());
        let mut kept: Vec<(usize, Vec<Arc<str>>)> = Vec::new();
        let mut combinations = 1_usize;
        for (column, values) in shortest_first {
            combinations = combinations.saturating_mul(values.len());
            if kept.is_empty() || combinations <= COMBINATIONS_MAX {
                kept.push((column, values));
            }
        }
        kept.sort_by_key(|(column, _)| *column);
        let mut texts = vec![String::new()];
        for (place, (_, values)) in kept.iter().enumerate() {
            let longer = |text: &String| match place {
                0 => values.iter().map(|value| value.to_string()).collect::<Vec<_>>(),
                _ => values.iter().map(|value| format!("{text}{BETWEEN}{value}")).collect(),
            };
            texts = texts.iter().flat_map(longer).collect();
        }
        let columns: Box<[usize]> = kept.iter().map(|(column, _)| *column).collect();
        (!columns.is_empty()).then(|| Self { columns, values: texts.into_iter().map(Arc::from).collect() })
    }
}

/// What a row has in the columns of a pin.
fn value_of<'a>(row: &'a Row, columns: &[usize], sought: &'a mut String) -> &'a str {
    if let [column] = columns {
        return row.value(*column);
    }
    sought.clear();
    for (place, &column) in columns.iter().enumerate() {
        if place > 0 {
            sought.push(BETWEEN);
        }
        sought.push_str(row.value(column));
    }
    sought
}

/// The states are gone through in order, so one that is there already is the last.
fn concern(concerned: &mut BTreeMap<ChannelNumber, Concern>, number: ChannelNumber, at: usize) {
    match concerned.entry(number).or_insert_with(|| Concern::These(Vec::new())) {
        Concern::All => {}
        Concern::These(places) => {
            if places.last() != Some(&at) {
                places.push(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::ChannelSpec;
    use crate::identity::ResolvedPolicy;
    use crate::publication::{Column, FeedKey, Schema};
    use crate::query::{Comparison, Filter, Query};

    fn equals(column: &str, value: &str) -> Filter {
        Filter::Compare { column: column.into(), op: Comparison::Eq, value: value.into() }
    }

    fn view(policy: Filter, filter: Filter) -> View {
        let columns = ["id", "tenant", "status", "customer"].map(|name| Column::new(name, "text")).to_vec();
        let schema = Arc::new(Schema { columns, key: vec![0] });
        let feed = FeedKey { name: "a".into(), generation: 1 };
        let query = Query { filter, ..Query::default() };
        View::new(&ChannelSpec { feed, policy: ResolvedPolicy::Filter(policy), query }, &schema).expect("a view")
    }

    fn state(id: u32, tenant: &str, status: &str) -> State {
        let row = Row::parse(&format!(r#"["{id}",{tenant},{status},null]"#)).expect("a row");
        State { key: Key::new(format!(r#"["{id}"]"#)), row: Some(Arc::new(row)) }
    }

    fn numbers(concerned: &BTreeMap<ChannelNumber, Concern>) -> Vec<u64> {
        concerned.keys().map(|number| number.0).collect()
    }

    #[test]
    fn channels_are_found_by_all_that_pins_them_policy_and_query_alike() {
        let mut index = Index::default();
        let everything = Filter::default();
        let tenant = |value: &str| equals("tenant", value);
        let open = view(tenant("7"), equals("status", "\"open\""));
        let schema_id = open.feed_schema_id().clone();
        index.join(ChannelNumber(1), &open, [].iter());
        index.join(ChannelNumber(2), &view(tenant("7"), everything.clone()), [].iter());
        index.join(ChannelNumber(3), &view(tenant("8"), everything.clone()), [].iter());
        index.join(ChannelNumber(4), &view(everything.clone(), everything.clone()), [].iter());
        // Both bounds at once: the second tenant is all that is left.
        let both = Filter::In { column: "tenant".into(), values: vec!["8".into(), "9".into()] };
        index.join(ChannelNumber(5), &view(tenant("8"), both), [].iter());
        index.join(ChannelNumber(6), &view(tenant("7"), tenant("8")), [].iter());
        let found = |index: &Index, state: State| numbers(&index.concerned(&schema_id, &[state]));
        assert_eq!(found(&index, state(1, "7", "\"open\"")), [1, 2, 4]);
        assert_eq!(found(&index, state(1, "7", "\"paid\"")), [2, 4]);
        assert_eq!(found(&index, state(1, "8", "\"open\"")), [3, 4, 5]);
        assert_eq!(found(&index, state(1, "9", "null")), [4]);
        let several = [state(1, "8", "null"), state(2, "9", "null"), state(3, "8", "null")];
        let concerned = index.concerned(&schema_id, &several);
        assert_eq!(concerned[&ChannelNumber(3)], Concern::These(vec![0, 2]));
        assert_eq!(concerned[&ChannelNumber(4)], Concern::All);
        for number in 1..=6 {
            index.leave(ChannelNumber(number), [].iter());
        }
        assert!(index.members.is_empty() && index.by_schema.is_empty() && index.holders.is_empty());
    }

    #[test]
    fn who_has_a_row_is_found_by_its_key_until_it_has_it_no_more() {
        let mut index = Index::default();
        let key = Key::new("[\"1\"]");
        let view = |tenant: &str| view(Filter::default(), equals("tenant", tenant));
        let schema_id = view("7").feed_schema_id().clone();
        for (number, tenant) in [(1, "7"), (2, "8"), (3, "9")] {
            index.join(ChannelNumber(number), &view(tenant), [key.clone()].iter());
        }
        let gone = [State { key: key.clone(), row: None }];
        assert_eq!(numbers(&index.concerned(&schema_id, &gone)), [1, 2, 3]);
        index.note(ChannelNumber(1), [&key].into_iter(), |_| false);
        index.leave(ChannelNumber(2), [key.clone()].iter());
        assert_eq!(numbers(&index.concerned(&schema_id, &gone)), [3]);
        index.note(ChannelNumber(3), [&key].into_iter(), |_| false);
        assert!(index.holders.is_empty());
    }

    #[test]
    fn lists_whose_combinations_are_too_many_are_left_out_longest_first() {
        let list = |column: &str, count: usize| Filter::In {
            column: column.into(),
            values: (0..count).map(|value| value.to_string().into()).collect(),
        };
        let filter = Filter::all([list("tenant", 300), list("status", 20), list("customer", 12)]);
        let pin = Pin::of(&view(Filter::default(), filter)).expect("a pin");
        assert_eq!((&*pin.columns, pin.values.len()), ([2, 3].as_slice(), 240));
        let pin = Pin::of(&view(Filter::default(), list("tenant", 300))).expect("a pin");
        assert_eq!((&*pin.columns, pin.values.len()), ([1].as_slice(), 300));
    }

    #[test]
    fn channels_of_another_schema_are_concerned_by_everything() {
        let mut index = Index::default();
        index.join(ChannelNumber(1), &view(Filter::default(), equals("tenant", "7")), [].iter());
        let concerned = index.concerned("another", &[state(1, "8", "null")]);
        assert_eq!(concerned[&ChannelNumber(1)], Concern::All);
    }
}
