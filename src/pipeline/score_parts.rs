//! The scores of all shards, added up: whether the files are parts of one whole, and of what is asked
//! for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dlc_passes::sums::{FisherSums, Layout, ScoreRequest, Shard};
use dlc_passes::{PassError, ScoreParts};

use super::score_file::{self, Description, ScoreFile};

/// Missing shards that are named; more are counted.
const SHOWN: usize = 4;

/// Files of scores, one of each shard, in the order of the shards.
#[derive(Debug)]
pub(super) struct ScoreFiles(Vec<ScoreFile>);

impl ScoreFiles {
    /// Reads all parts of one whole; none without a path.
    pub fn read(paths: &[PathBuf]) -> Result<Option<Self>, PassError> {
        let mut shards: BTreeMap<Shard, ScoreFile> = BTreeMap::new();
        for path in paths {
            let part = score_file::read(path)?;
            if let Some(first) = shards.values().next() {
                check_whole(first, &part)?;
            }
            if let Some(same) = shards.insert(part.shard, part) {
                let again = &shards[&same.shard].place;
                let problem = format!(
                    "holds shard {}, as {} does; leave one out",
                    same.shard, again
                );
                return Err(refused(&same, problem));
            }
        }
        let parts: Vec<ScoreFile> = shards.into_values().collect();
        let Some(first) = parts.first() else {
            return Ok(None);
        };
        check_complete(first, &parts)?;
        Ok(Some(Self(parts)))
    }
}

/// Refuses files that aren't the scores of all shards of one whole.
///
/// # Errors
/// [`PassError::Scores`] with the file, and the way out.
pub fn check_scores(paths: &[PathBuf]) -> Result<(), PassError> {
    ScoreFiles::read(paths).map(drop)
}

fn refused(part: &ScoreFile, problem: impl Into<String>) -> PassError {
    PassError::Scores {
        place: part.place.clone(),
        problem: problem.into(),
    }
}

/// Refuses a part of another whole than that of `first`.
fn check_whole(first: &ScoreFile, part: &ScoreFile) -> Result<(), PassError> {
    if part.shard.count() != first.shard.count() {
        let problem = format!(
            "holds shard {}, and {} shard {}; name the parts of one split",
            part.shard, first.place, first.shard
        );
        return Err(refused(part, problem));
    }
    let known = Known {
        who: &first.place,
        layout: &first.sums.layout(),
    };
    check(part, &first.description, &known)
}

/// What a part is held against.
struct Known<'a> {
    /// Whose the description is.
    who: &'a str,
    layout: &'a Layout,
}

/// What the scores of `found` are of that those of `wanted`, which `who` has, are not.
fn difference(found: &Description, wanted: &Description, who: &str) -> Option<String> {
    let text = if found.dlc != wanted.dlc {
        format!("dlc {}, and {who} is of dlc {}", found.dlc, wanted.dlc)
    } else if found.module_sha256 != wanted.module_sha256 {
        let parts = "other weights, adapters, element type or earlier passes";
        format!("{} with {parts} than {who}", found.model)
    } else if found.objective != wanted.objective {
        let (found, wanted) = (&found.objective, &wanted.objective);
        format!("loss {found}, and {who} has {wanted}")
    } else if found.samples != wanted.samples {
        let (found, wanted) = (found.samples, wanted.samples);
        format!("{found} samples, and {who} has {wanted}")
    } else if found.samples_sha256 != wanted.samples_sha256 {
        format!("other samples than {who}: their file, number, length or seed differs")
    } else {
        return None;
    };
    Some(text)
}

/// Refuses a part whose scores are of something else than the description says, or unsound.
fn check(part: &ScoreFile, wanted: &Description, known: &Known<'_>) -> Result<(), PassError> {
    const AGAIN: &str = "run `dlc score` on the same model with the same flags for every part";
    if let Some(difference) = difference(&part.description, wanted, known.who) {
        let problem = format!("holds scores of {difference}; {AGAIN}");
        return Err(refused(part, problem));
    }
    let own = part.sums.layout();
    let odd = own
        .iter()
        .find(|(name, count)| known.layout.get(*name) != Some(count));
    if let Some((name, count)) = odd {
        let problem = match known.layout.get(name) {
            Some(wanted) => {
                format!("tensor {name} has {count} sums, and {wanted} are wanted; {AGAIN}")
            }
            None => format!("holds tensor {name}, which nothing is scored by; {AGAIN}"),
        };
        return Err(refused(part, problem));
    }
    if let Some(name) = known.layout.keys().find(|name| !own.contains_key(*name)) {
        return Err(refused(part, format!("lacks tensor {name}; {AGAIN}")));
    }
    if let Some((name, value)) = part.sums.unsound() {
        let problem = format!("tensor {name} holds {value}, which is no sum of squares; {AGAIN}");
        return Err(refused(part, problem));
    }
    Ok(())
}

/// Refuses parts that lack a shard.
fn check_complete(first: &ScoreFile, parts: &[ScoreFile]) -> Result<(), PassError> {
    let count = first.shard.count();
    if parts.len() == count {
        return Ok(());
    }
    let there = |number: &usize| parts.iter().any(|part| part.shard.number() == *number);
    let missing: Vec<usize> = (1..=count)
        .filter(|number| !there(number))
        .take(SHOWN)
        .collect();
    let numbers: Vec<String> = missing.iter().map(usize::to_string).collect();
    let more = match count - parts.len() - missing.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let problem = format!(
        "shard {}{more} of {count} is missing beside it; run `dlc score MODEL --shard {}/{count} -o FILE` with the flags of the other parts, and name every part",
        numbers.join(", "),
        missing.first().copied().unwrap_or(1)
    );
    Err(refused(first, problem))
}

impl ScoreParts for ScoreFiles {
    fn sums(&self, request: &ScoreRequest) -> Result<FisherSums, PassError> {
        let mut sums = FisherSums::zero(&request.layout);
        let known = Known {
            who: "this compilation",
            layout: &request.layout,
        };
        for part in &self.0 {
            let wanted = Description::new(&part.description.model, request, part.shard);
            check(part, &wanted, &known)?;
            sums.merge(&part.sums);
        }
        Ok(sums)
    }
}
