//! Asks Postgres, inside a cut, which of its rows each live identity sees.
//!
//! The rows of the cut were read by the server's own role. Here the same transaction, so the same snapshot, takes on one
//! role with its claims after the other, and looks which of those rows are left: one round trip for all identities, in
//! `rowcast.see`. An identity for which that fails is left out of the entry, and its channels read again; nothing that a
//! policy does can fail a cut.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::PgConnection;

use crate::entry::seen::Seen;
use crate::identity::{Onlooker, RlsIdentity};
use crate::publication::{FeedKey, Publication};

/// More identities times rows than this in one cut become a marker: asking would hold up everybody else's changes. At a
/// microsecond each, this is a fifth of a second.
const PAIRS_MAX: usize = 200_000;

/// Complaints remembered, so that each is logged once; with more, all are forgotten.
const COMPLAINTS_MAX: usize = 1_000;

/// The identities with live channels, by feed.
pub type Onlookers = HashMap<FeedKey, Vec<Viewer>>;

/// An identity, and what entries call it.
#[derive(Clone, Debug)]
pub struct Viewer {
    pub hash: Arc<str>,
    pub identity: Arc<RlsIdentity>,
}

/// Sorts onlookers by feed; of one feed by role, so that Postgres plans once for each role.
pub fn by_feed(onlookers: impl IntoIterator<Item = Onlooker>) -> Onlookers {
    let mut feeds: Onlookers = HashMap::new();
    for Onlooker { feed, identity } in onlookers {
        feeds.entry(feed).or_default().push(Viewer { hash: identity.hash_text(), identity });
    }
    for viewers in feeds.values_mut() {
        viewers.sort_unstable_by(|a, b| a.identity.cmp(&b.identity));
        viewers.dedup_by(|a, b| a.hash == b.hash);
    }
    feeds
}

/// A row of the cut: its index among the states, and where to find it.
#[derive(Clone, Debug)]
pub struct Placed {
    pub index: u32,
    pub key: String,
    /// The partition, and the place in it, as texts.
    pub part: String,
    pub place: String,
}

/// What a session knows of asking.
#[derive(Debug, Default)]
pub struct Sighting {
    /// Publications whose statements are prepared in this session, with the definition that they were made by.
    prepared: HashMap<i32, String>,
    complaints: HashSet<(Arc<str>, String)>,
}

impl Sighting {
    /// Whether these are too many to ask for.
    pub fn is_too_much(viewers: &[Viewer], rows: usize) -> bool {
        viewers.len().saturating_mul(rows) > PAIRS_MAX
    }

    /// Who sees which of the rows; `states` is how many the version has. `definition` is another where the statements have
    /// to be made anew.
    ///
    /// # Errors
    /// Postgres refuses all of it, and the transaction with it.
    pub async fn see(
        &mut self,
        connection: &mut PgConnection,
        publication: &Publication,
        definition: &str,
        viewers: &[Viewer],
        rows: &[Placed],
        states: usize,
    ) -> Result<Seen, sqlx::Error> {
        let mut seen = Seen::default();
        if viewers.is_empty() {
            return Ok(seen);
        }
        if rows.is_empty() {
            for viewer in viewers {
                seen.note(viewer.hash.clone(), Vec::new(), states);
            }
            return Ok(seen);
        }
        if self.prepared.get(&publication.id).is_none_or(|by| by != definition) {
            self.prepared.remove(&publication.id);
            sqlx::query("select rowcast.prepare_sight($1)").bind(publication.id).execute(&mut *connection).await?;
            self.prepared.insert(publication.id, definition.to_owned());
        }
        let texts = |text: fn(&Placed) -> &str| rows.iter().map(text).collect::<Vec<_>>();
        let of_each =
            |text: fn(&RlsIdentity) -> &str| viewers.iter().map(|viewer| text(&viewer.identity)).collect::<Vec<_>>();
        let answers: Vec<(i32, Option<Vec<i32>>, Option<String>)> = sqlx::query_as(
            "select identity, seen, problem \
             from rowcast.see($1, $2::text[]::tid[], $3::text[]::oid[], $4, $5, $6)",
        )
        .bind(publication.id)
        .bind(texts(|row| &row.place))
        .bind(texts(|row| &row.part))
        .bind(texts(|row| &row.key))
        .bind(of_each(|identity| &identity.role))
        .bind(of_each(|identity| &identity.claims))
        .fetch_all(&mut *connection)
        .await?;
        for (number, sees, problem) in answers {
            let Some(viewer) = usize::try_from(number).ok().and_then(|number| viewers.get(number)) else { continue };
            match sees {
                Some(places) => {
                    let index = |place: i32| usize::try_from(place).ok().and_then(|place| rows.get(place));
                    let indices = places.into_iter().filter_map(index).map(|row| row.index).collect();
                    seen.note(viewer.hash.clone(), indices, states);
                }
                None => self.complain(publication, viewer, problem.unwrap_or_default()),
            }
        }
        Ok(seen)
    }

    /// Says once what keeps an identity from being asked for.
    fn complain(&mut self, publication: &Publication, viewer: &Viewer, problem: String) {
        let role = &viewer.identity.role;
        let why = match problem.as_str() {
            "exempt" => {
                "row security does not apply to the role: it is a superuser's, has BYPASSRLS, or owns the table"
            }
            "late" => "the policies take too long",
            "42501" => "the server may not become the role, or the role may not read the table",
            "22023" => "there is no such role",
            _ => "a policy failed",
        };
        if self.complaints.len() >= COMPLAINTS_MAX {
            self.complaints.clear();
        }
        if self.complaints.insert((viewer.hash.clone(), problem.clone())) {
            tracing::warn!(publication = %publication.feed, role, sqlstate = problem, why, "row security cannot be followed");
        }
    }
}
