//! Rows of channels with and without a window, step by step and at random.

use proptest::prelude::*;

use super::*;
use crate::channel::ChannelSpec;
use crate::entry::seen::{Seen, Sight, Visible};
use crate::identity::ResolvedPolicy;
use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::{Column, FeedKey, Schema};
use crate::query::{Comparison, Filter, Query};

fn key(id: u64) -> Key {
    Key::new(format!("[{id}]"))
}

fn row(id: u64, value: u64) -> Arc<Row> {
    Arc::new(Row::parse(&format!("[{id},{value}]")).expect("a row"))
}

fn upsert(id: u64, value: u64) -> State {
    State { key: key(id), row: Some(row(id, value)) }
}

fn delete(id: u64) -> State {
    State { key: key(id), row: None }
}

/// A view of a feed with the columns `id`, which is the key, and `n`.
fn view(query: Query) -> View {
    let column = |name: &str| Column::new(name, "int4");
    let schema = Arc::new(Schema { columns: vec![column("id"), column("n")], key: vec![0] });
    let feed = FeedKey { name: "a".into(), generation: 1 };
    View::new(&ChannelSpec { feed, policy: ResolvedPolicy::Public, query }, &schema).expect("a view")
}

/// A step of a channel without filters.
fn move_to(rows: &mut Rows, base: Version, version: Version, states: &[State]) -> Changes {
    rows.apply(base, version, Visible::All.mark(states), &view(Query::default())).expect("no window")
}

fn n_is(n: u64) -> Filter {
    Filter::Compare { column: "n".into(), op: Comparison::Eq, value: n.to_string().into() }
}

fn content(rows: &Rows) -> HashMap<String, String> {
    rows.iter().map(|(key, held)| (key.as_str().to_owned(), held.row.text().to_owned())).collect()
}

#[test]
fn a_step_says_only_what_differs() {
    let mut rows = Rows::at(Version(5), [(key(1), row(1, 10)), (key(2), row(2, 20))]);
    let changes = move_to(&mut rows, Version(5), Version(6), &[upsert(1, 10), upsert(2, 21), delete(9), upsert(3, 30)]);
    assert_eq!(changes.rows.len(), 2);
    assert_eq!(changes.rows[0].before, Some(row(2, 20)));
    assert_eq!(changes.rows[1].before, None);
    assert!(changes.gone.is_empty());
    let changes = move_to(&mut rows, Version(6), Version(7), &[delete(1)]);
    assert_eq!(changes.gone, [(key(1), Some(Why::Deleted))]);
    assert_eq!(rows.changed(), Version(7));
    rows.check_invariants();
}

#[test]
fn what_lies_below_the_floor_or_in_a_hole_is_not_answered() {
    let mut rows = Rows::at(Version(5), [(key(1), row(1, 10))]);
    move_to(&mut rows, Version(5), Version(6), &[upsert(1, 11)]);
    assert!(rows.changes_since(Version(4)).is_none());
    assert!(rows.changes_since(Version(5)).is_some());
    // A version that continued 6 and is numbered 9: 7 and 8 were lost.
    move_to(&mut rows, Version(6), Version(9), &[upsert(1, 12)]);
    assert!(rows.reaches(Version(6)) && rows.reaches(Version(9)));
    assert!(!rows.reaches(Version(7)) && !rows.reaches(Version(8)));
}

#[test]
fn a_replayed_step_below_the_position_leaves_no_hole_above_the_floor_unmarked() {
    let mut rows = Rows::at(Version(50), [(key(1), row(1, 10))]);
    move_to(&mut rows, Version(40), Version(60), &[upsert(1, 11)]);
    assert!(rows.reaches(Version(50)) && rows.reaches(Version(60)));
    assert!(!rows.reaches(Version(55)));
}

#[test]
fn a_row_that_came_and_went_between_two_resyncs_makes_a_hole() {
    let mut rows = Rows::at(Version(5), [(key(1), row(1, 10))]);
    let fresh = Rows::at(Version(9), [(key(2), row(2, 20))]);
    let expected = content(&fresh);
    let changes = rows.replace(Version(5), Version(9), fresh, &view(Query::default()));
    assert_eq!((changes.rows.len(), changes.gone), (1, vec![(key(1), Some(Why::Deleted))]));
    assert!(rows.reaches(Version(5)) && !rows.reaches(Version(7)));
    assert_eq!(content(&rows), expected);
    let filtered = view(Query { filter: n_is(1), ..Query::default() });
    let changes = rows.replace(Version(9), Version(10), Rows::at(Version(10), []), &filtered);
    assert_eq!(changes.gone, [(key(2), None)], "it may be there still, and not match");
    rows.check_invariants();
}

#[test]
fn a_row_that_leaves_the_filter_is_gone_and_one_that_enters_is_new() {
    let view = view(Query { filter: n_is(1), ..Query::default() });
    let mut rows = Rows::at(Version(5), [(key(1), row(1, 1))]);
    let changes = rows
        .apply(Version(5), Version(6), Visible::All.mark(&[upsert(1, 2), upsert(2, 1), upsert(3, 3)]), &view)
        .expect("no window");
    assert_eq!(changes.gone, [(key(1), Some(Why::Filter))]);
    assert_eq!(changes.rows.iter().map(|changed| &changed.key).collect::<Vec<_>>(), [&key(2)]);
    // It changes and goes where nobody sees it.
    for (version, state) in [(6, upsert(1, 3)), (7, delete(1))] {
        let changes =
            rows.apply(Version(version), Version(version + 1), Visible::All.mark(&[state]), &view).expect("no window");
        assert!(changes.is_empty());
    }
    let since = rows.changes_since(Version(5)).expect("above the floor");
    assert_eq!((since.rows.len(), since.gone), (1, vec![(key(1), Some(Why::Filter))]));
    rows.check_invariants();
}

#[test]
fn a_change_in_a_column_that_was_not_selected_is_no_change() {
    let view = view(Query { select: Some(vec!["id".into()]), ..Query::default() });
    let mut rows = Rows::at(Version(5), []);
    let mut step = |version: u64, state: State| {
        rows.apply(Version(version - 1), Version(version), Visible::All.mark(&[state]), &view).expect("no window");
        rows.changed()
    };
    assert_eq!(step(6, upsert(1, 10)), Version(6));
    assert_eq!(step(7, upsert(1, 11)), Version(6));
    assert_eq!(step(8, delete(1)), Version(8));
}

/// The first rows by `n` from above.
fn highest(limit: u32) -> View {
    let by_n = OrderBy { column: "n".into(), dir: Direction::Desc, nulls: Nulls::First };
    view(Query { order: vec![by_n], limit: Some(limit), ..Query::default() })
}

/// The ids shown, by `n` from above.
fn shown(rows: &Rows) -> Vec<u64> {
    let mut shown: Vec<(u64, u64)> = rows
        .iter()
        .map(|(_, held)| (held.row.value(1).parse().expect("n"), held.row.value(0).parse().expect("id")))
        .collect();
    shown.sort_by_key(|&(n, id)| (std::cmp::Reverse(n), id));
    shown.into_iter().map(|(_, id)| id).collect()
}

#[test]
fn who_is_pushed_out_of_a_window_is_gone_and_comes_back_when_there_is_room() {
    let view = highest(2);
    let mut rows = Rows::read(&view, Version(5), vec![(key(1), row(1, 10)), (key(2), row(2, 20))], true);
    let mut step = |version: u64, states: &[State]| {
        let changes = rows
            .apply(Version(version - 1), Version(version), Visible::All.mark(states), &view)
            .expect("all are known");
        rows.check_invariants();
        (changes.rows.into_iter().map(|changed| changed.key).collect::<Vec<_>>(), changes.gone, shown(&rows))
    };
    assert_eq!(step(6, &[upsert(3, 30)]), (vec![key(3)], vec![(key(1), Some(Why::Window))], vec![3, 2]));
    assert_eq!(step(7, &[upsert(4, 5)]), (vec![], vec![], vec![3, 2]), "behind the window");
    assert_eq!(step(8, &[delete(3)]), (vec![key(1)], vec![(key(3), Some(Why::Deleted))], vec![2, 1]));
    assert_eq!(step(9, &[upsert(2, 1)]), (vec![key(4)], vec![(key(2), Some(Why::Window))], vec![1, 4]));
    assert_eq!(step(10, &[delete(1), delete(4)]).2, vec![2], "and then there are no others");
}

#[test]
fn a_window_that_may_lack_rows_runs_out_and_is_refilled_before() {
    let view = highest(2);
    let read = |ids: std::ops::RangeInclusive<u64>, all| {
        Rows::read(&view, Version(5), ids.map(|id| (key(id), row(id, 100 - id))).collect(), all)
    };
    let mut rows = read(1..=6, false);
    assert_eq!((shown(&rows), rows.runs_low()), (vec![1, 2], false));
    // Nobody knows what stands beyond 94; a row there does not count.
    rows.apply(Version(5), Version(6), Visible::All.mark(&[upsert(7, 93), delete(1), delete(2), delete(5)]), &view)
        .expect("enough");
    assert_eq!((shown(&rows), rows.runs_low(), rows.knows(&key(7))), (vec![3, 4], true, false));

    let mut refilled = rows.clone();
    assert!(!refilled.refill(read(4..=9, false)), "other rows than those that are shown");
    assert!(refilled.refill(Rows::read(
        &view,
        Version(6),
        [3, 4, 6, 7, 8, 9].map(|id| (key(id), row(id, 100 - id))).into(),
        false
    )));
    refilled
        .apply(Version(6), Version(7), Visible::All.mark(&[delete(3), delete(4), delete(6)]), &view)
        .expect("enough");
    assert_eq!(shown(&refilled), [7, 8]);
    refilled.check_invariants();

    let left = rows.apply(Version(6), Version(7), Visible::All.mark(&[delete(3), delete(4)]), &view);
    assert_eq!(left, Err(RanOut));
    let changes = rows.replace(Version(6), Version(7), read(6..=9, true), &view);
    assert_eq!((shown(&rows), changes.rows.len(), changes.gone.len()), (vec![6, 7], 2, 0));
    let since = rows.changes_since(Version(6)).expect("where the clients stand");
    assert_eq!((since.rows.len(), since.gone.len()), (2, 2));
    assert!(since.gone.iter().all(|(_, why)| *why == Some(Why::Deleted)));
    rows.check_invariants();
}

#[test]
fn spare_rows_are_bounded_in_number_and_bytes() {
    let view = highest(3);
    let mut rows = Rows::read(&view, Version(0), Vec::new(), true);
    for id in 0..1_000 {
        let changes =
            rows.apply(Version(id), Version(id + 1), Visible::All.mark(&[upsert(id, id)]), &view).expect("room");
        assert!(changes.trimmed.iter().all(|key| !rows.knows(key)));
    }
    assert!(rows.spare().count() <= 128 && rows.horizon().is_some());
    assert_eq!(shown(&rows), [999, 998, 997]);
    let large = |id: u64| State {
        key: key(id),
        row: Some(Arc::new(Row::parse(&format!("[{id},{}{id}]", " ".repeat(1 << 20))).expect("a row"))),
    };
    for id in 1_000..1_020 {
        rows.apply(Version(id), Version(id + 1), Visible::All.mark(&[large(id)]), &view).expect("room");
        rows.check_invariants();
    }
    assert!(rows.spare().map(|(_, row)| row.text().len()).sum::<usize>() <= 9 << 20);
    assert_eq!(shown(&rows), [1_019, 1_018, 1_017]);
}

#[test]
fn a_window_of_nothing_shows_nothing_and_never_runs_out() {
    let view = highest(0);
    let mut rows = Rows::read(&view, Version(5), Vec::new(), false);
    assert!(rows.apply(Version(5), Version(6), Visible::All.mark(&[upsert(1, 1)]), &view).expect("no room").is_empty());
    assert!(rows.is_empty() && !rows.runs_low() && !rows.knows(&key(1)));
}

#[test]
fn a_row_that_row_security_hides_is_gone_for_want_of_permission() {
    let mut rows = Rows::at(Version(5), [(key(1), row(1, 1)), (key(2), row(2, 1)), (key(3), row(3, 1))]);
    let mut seen = Seen::default();
    seen.note("i".into(), vec![0, 4], 5);
    let states = [upsert(1, 2), upsert(2, 2), delete(3), upsert(4, 1), upsert(5, 1)];
    let visible = Sight::Of("i".into());
    let visible = visible.of(&seen).expect("listed").mark(&states);
    let changes = rows.apply(Version(5), Version(6), visible, &view(Query::default())).expect("no window");
    assert_eq!(changes.rows.iter().map(|changed| &changed.key).collect::<Vec<_>>(), [&key(1), &key(5)]);
    assert_eq!(changes.gone, [(key(2), Some(Why::Permission)), (key(3), Some(Why::Deleted))]);
    rows.check_invariants();
}

#[test]
fn old_tombstones_go_and_raise_the_floor() {
    let count = TOMBSTONES_MIN as u64 + 2;
    let mut rows = Rows::at(Version(0), (0..count).map(|id| (key(id), row(id, 1))));
    for id in 0..count {
        move_to(&mut rows, Version(id), Version(id + 1), &[delete(id)]);
    }
    assert!(rows.tombstones.len() <= TOMBSTONES_MIN);
    assert!(rows.floor() > Version(0));
    assert!(rows.changes_since(Version(0)).is_none());
    assert!(rows.changes_since(rows.floor()).is_some());
    rows.check_invariants();
}

proptest! {
    /// A client that holds the state of any version it may stand on, and applies the answer, equals the rows.
    #[test]
    fn changes_since_lead_from_any_version_to_the_last(
        steps in proptest::collection::vec(
            proptest::collection::btree_map(0u64..8, proptest::option::of(0u64..3), 0..5), 1..30)
    ) {
        let mut rows = Rows::at(Version(0), []);
        let mut history = vec![content(&rows)];
        for (index, step) in steps.iter().enumerate() {
            let states: Vec<State> = step
                .iter()
                .map(|(&id, value)| value.map_or_else(|| delete(id), |value| upsert(id, value)))
                .collect();
            move_to(&mut rows, Version(index as u64), Version(index as u64 + 1), &states);
            rows.check_invariants();
            history.push(content(&rows));
        }
        for (version, state) in history.iter().enumerate() {
            let since = rows.changes_since(Version(version as u64)).expect("above the floor");
            let mut client = state.clone();
            for (key, _) in since.gone {
                client.remove(key.as_str());
            }
            for (key, row) in since.rows {
                client.insert(key.as_str().to_owned(), row.text().to_owned());
            }
            prop_assert_eq!(&client, &content(&rows));
        }
    }

    /// Random steps against a model: the whole table, sorted and cut, at every version. A window that runs
    /// out is read again, and a client that takes every change, or what changed since any version, has its rows.
    #[test]
    fn a_window_equals_the_sorted_table_at_every_version(
        limit in 0u32..6,
        steps in proptest::collection::vec(
            (proptest::collection::btree_map(0u64..150, proptest::option::weighted(0.6, 0u64..40), 0..12),
             proptest::option::weighted(0.15, 0u64..150)), 1..40)
    ) {
        let view = highest(limit);
        let mut table: HashMap<u64, u64> = (0..150).map(|id| (id, id % 40)).collect();
        let read = |table: &HashMap<u64, u64>, version| {
            let mut all: Vec<(u64, u64)> = table.iter().map(|(&id, &n)| (id, n)).collect();
            all.sort_by_key(|&(id, n)| (std::cmp::Reverse(n), id));
            let is_all = all.len() < Window::reading(limit as usize, 0);
            all.truncate(Window::reading(limit as usize, 0));
            Rows::read(&view, version, all.into_iter().map(|(id, n)| (key(id), row(id, n))).collect(), is_all)
        };
        let expected = |table: &HashMap<u64, u64>| -> HashMap<String, String> {
            let mut all: Vec<(u64, u64)> = table.iter().map(|(&id, &n)| (id, n)).collect();
            all.sort_by_key(|&(id, n)| (std::cmp::Reverse(n), id));
            all.truncate(limit as usize);
            all.into_iter().map(|(id, n)| (format!("[{id}]"), format!("[{id},{n}]"))).collect()
        };
        let mut rows = read(&table, Version(0));
        let mut client = content(&rows);
        let mut history = vec![client.clone()];
        for (index, (step, swept)) in steps.iter().enumerate() {
            let mut step = step.clone();
            // A sweep takes most rows away at once, so that windows run out.
            if let Some(from) = swept {
                step.extend((*from..*from + 120).filter(|id| id % 8 != 0).map(|id| (id, None)));
            }
            let (before, version) = (Version(index as u64), Version(index as u64 + 1));
            let states: Vec<State> =
                step.iter().map(|(&id, n)| n.map_or_else(|| delete(id), |n| upsert(id, n))).collect();
            for (&id, n) in &step {
                match n {
                    Some(n) => table.insert(id, *n),
                    None => table.remove(&id),
                };
            }
            match rows.apply(before, version, Visible::All.mark(&states), &view) {
                Ok(changes) => {
                    for (key, _) in changes.gone {
                        prop_assert!(client.remove(key.as_str()).is_some(), "gone, and never there");
                    }
                    for changed in changes.rows {
                        client.insert(changed.key.as_str().to_owned(), changed.row.text().to_owned());
                    }
                }
                Err(RanOut) => {
                    rows.replace(before, version, read(&table, version), &view);
                    client = content(&rows);
                }
            }
            rows.check_invariants();
            prop_assert_eq!(&content(&rows), &expected(&table));
            prop_assert_eq!(&client, &content(&rows));
            if rows.runs_low() {
                prop_assert!(rows.refill(read(&table, version)));
                rows.check_invariants();
            }
            history.push(client.clone());
        }
        for (version, mut client) in history.into_iter().enumerate() {
            let since = rows.changes_since(Version(version as u64)).expect("above the floor");
            for (key, _) in since.gone {
                client.remove(key.as_str());
            }
            for (key, row) in since.rows {
                client.insert(key.as_str().to_owned(), row.text().to_owned());
            }
            prop_assert_eq!(&client, &content(&rows));
        }
    }
}
