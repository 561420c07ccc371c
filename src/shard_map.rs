//! Key hash to shard: one snapshot of a stream's shards.
//!
//! Place: made from ListShards, asked by `dispatch` for every event (by lane, so mostly one table look-up),
//! and by the check of the answers ("the reshard trap"). Immutable; a reshard brings a new one.
//!
//! *COVER*: the open shards cover the hash space without gap or overlap; a listing that does not (seen in the
//! middle of a reshard) is refused, and asked for again. Pure.

use std::fmt;

use crate::event::{KeyHash, LANES, Lane, ShardId};
use crate::kinesis::ShardRange;

/// Where the hashes of a lane go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneShard {
    /// All to this open shard (index).
    One(u32),
    /// To several: a shard boundary lies inside the lane, and the hash must be asked.
    Several,
}

/// The shards of a stream.
#[derive(Clone, Debug)]
pub struct ShardMap {
    /// Open shards by first hash.
    open: Vec<ShardRange>,
    closed: Vec<ShardRange>,
    lanes: Vec<LaneShard>,
}

/// Why a listing makes no map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No open shard.
    Empty,
    /// A hash that no open shard takes, or that two take: a reshard is under way.
    Uncovered(u128),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the listing has no open shard"),
            Self::Uncovered(hash) => write!(f, "the open shards do not cover hash {hash} exactly once: a reshard is under way"),
        }
    }
}

impl std::error::Error for MapError {}

impl ShardMap {
    /// A map of all listed shards, open and closed.
    ///
    /// A shard whose children are open counts as closed even if the listing calls it open.
    ///
    /// # Errors
    /// [`MapError`] when the open shards do not cover the hash space exactly once.
    pub fn new(all: Vec<ShardRange>) -> Result<Self, MapError> {
        let parents: Vec<ShardId> = all.iter().flat_map(|shard| shard.parents.iter().cloned()).collect();
        let (mut open, closed): (Vec<_>, Vec<_>) = all.into_iter().partition(|shard| shard.open && !parents.contains(&shard.id));
        open.sort_by_key(|shard| shard.first_hash);
        let Some(last) = open.last() else { return Err(MapError::Empty) };
        if last.last_hash != u128::MAX {
            return Err(MapError::Uncovered(last.last_hash + 1));
        }
        let mut next = Some(0);
        for shard in &open {
            if next != Some(shard.first_hash) || shard.last_hash < shard.first_hash {
                return Err(MapError::Uncovered(next.unwrap_or(shard.first_hash)));
            }
            next = shard.last_hash.checked_add(1);
        }
        let mut map = Self { open, closed, lanes: Vec::new() };
        map.lanes = (0..LANES as u16)
            .map(|lane| {
                let first = map.search(Lane(lane).first_hash());
                if first == map.search(Lane(lane).last_hash()) { LaneShard::One(first as u32) } else { LaneShard::Several }
            })
            .collect();
        Ok(map)
    }

    fn search(&self, hash: u128) -> usize {
        // COVER: the first shard begins at 0, so at least one begins at or before any hash.
        self.open.partition_point(|shard| shard.first_hash <= hash) - 1
    }

    /// Open shards, by first hash.
    #[must_use]
    pub fn open(&self) -> &[ShardRange] {
        &self.open
    }

    /// Shards that take nothing more and are listed still.
    #[must_use]
    pub fn closed(&self) -> &[ShardRange] {
        &self.closed
    }

    /// Where a lane goes.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> LaneShard {
        self.lanes[lane.index()]
    }

    /// Lanes that several shards share.
    pub fn shared_lanes(&self) -> impl Iterator<Item = Lane> {
        (0..LANES as u16).map(Lane).filter(|lane| self.lane(*lane) == LaneShard::Several)
    }

    /// Index of the open shard that takes a hash.
    #[must_use]
    pub fn shard_of(&self, hash: KeyHash) -> usize {
        match self.lanes[hash.lane().index()] {
            LaneShard::One(shard) => shard as usize,
            LaneShard::Several => self.search(hash.0),
        }
    }

    /// A shard by name, open or closed.
    #[must_use]
    pub fn find(&self, id: &ShardId) -> Option<&ShardRange> {
        self.open.iter().chain(&self.closed).find(|shard| shard.id == *id)
    }

    /// The same open shards with the same ranges.
    #[must_use]
    pub fn same_open(&self, other: &Self) -> bool {
        self.open
            .iter()
            .map(|shard| (&shard.id, shard.first_hash, shard.last_hash))
            .eq(other.open.iter().map(|shard| (&shard.id, shard.first_hash, shard.last_hash)))
    }
}

/// `n` shards that cut the hash space evenly, as CreateStream makes them: for tests and benches.
#[must_use]
pub fn even_shards(n: u32) -> Vec<ShardRange> {
    let width = u128::MAX / u128::from(n);
    (0..n)
        .map(|shard| ShardRange {
            id: ShardId::from(format!("shardId-{shard:012}").as_str()),
            first_hash: if shard == 0 { 0 } else { width * u128::from(shard) + 1 },
            last_hash: if shard + 1 == n { u128::MAX } else { width * u128::from(shard + 1) },
            open: true,
            parents: Vec::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_hash_goes_to_the_shard_whose_range_holds_it(cuts in prop::collection::btree_set(1u128.., 0..40), hashes: Vec<u128>) {
            let mut first = 0;
            let mut all = Vec::new();
            for (n, cut) in cuts.iter().copied().chain([0]).enumerate() {
                let last_hash = cut.wrapping_sub(1);
                all.push(ShardRange {
                    id: ShardId::from(format!("s{n}").as_str()), first_hash: first, last_hash, open: true, parents: vec![],
                });
                first = cut;
            }
            all.reverse();
            let map = ShardMap::new(all).expect("covers");
            for hash in hashes.into_iter().chain(cuts.iter().copied()).chain(cuts.iter().map(|cut| cut - 1)).chain([0, u128::MAX]) {
                let shard = &map.open()[map.shard_of(KeyHash(hash))];
                prop_assert!((shard.first_hash..=shard.last_hash).contains(&hash));
            }
        }

        #[test]
        fn even_shards_cover(n in 1..3000u32) {
            prop_assert!(ShardMap::new(even_shards(n)).is_ok());
        }
    }

    #[test]
    fn a_gap_an_overlap_and_an_empty_listing_are_refused() {
        let mut gap = even_shards(4);
        gap.remove(2);
        assert!(matches!(ShardMap::new(gap), Err(MapError::Uncovered(_))));
        let mut overlap = even_shards(4);
        overlap[1].last_hash += 1;
        assert!(matches!(ShardMap::new(overlap), Err(MapError::Uncovered(_))));
        let mut closed = even_shards(2);
        closed[0].open = false;
        closed[1].open = false;
        assert_eq!(ShardMap::new(closed).expect_err("none open"), MapError::Empty);
    }

    #[test]
    fn a_parent_listed_as_open_beside_its_children_is_closed() {
        let mut all = even_shards(1);
        let parent = all[0].id.clone();
        for mut child in even_shards(2) {
            child.id = ShardId::from(format!("child-{}", child.id).as_str());
            child.parents = vec![parent.clone()];
            all.push(child);
        }
        let map = ShardMap::new(all).expect("children cover");
        assert_eq!(map.open().len(), 2);
        assert!(map.find(&parent).is_some());
    }
}
