//! How far scoring is: reported after every sample of every link, so that a bar moves and Ctrl-C is
//! heard.

use crate::context::Progress;
use crate::error::PassError;

/// Counts the steps of one computation.
pub(crate) struct Steps<'p> {
    progress: &'p dyn Progress,
    what: &'static str,
    done: usize,
    total: usize,
}

impl<'p> Steps<'p> {
    /// Starts `what`, which takes `total` steps.
    pub fn start(
        progress: &'p dyn Progress,
        what: &'static str,
        total: usize,
    ) -> Result<Self, PassError> {
        let steps = Self {
            progress,
            what,
            done: 0,
            total,
        };
        steps.tell()?;
        Ok(steps)
    }

    /// One more step is done; an error if the user asked to stop.
    pub fn step(&mut self) -> Result<(), PassError> {
        self.done += 1;
        self.tell()
    }

    /// So many steps were done by an earlier run.
    pub fn skip(&mut self, steps: usize) {
        self.done += steps;
    }

    /// Says again how far it is; an error if the user asked to stop.
    pub fn tell(&self) -> Result<(), PassError> {
        self.progress.update(self.what, self.done, self.total);
        if self.progress.interrupted() {
            Err(PassError::Interrupted)
        } else {
            Ok(())
        }
    }
}
