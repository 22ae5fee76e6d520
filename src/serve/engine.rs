//! The thread that continues texts: it owns a model, lets requests join and leave between passes,
//! and sends each what it gains.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use dlc_runtime::methods::speculation::{
    Batch, DecodeOptions, Generation, Progress, TextId, TokenLogprobs,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::metrics::{ModelMetrics, Outcome};
use super::places::{Place, Waiting};
use super::problem::Problem;

/// What a request is told of its text.
#[derive(Debug)]
pub(super) enum Event {
    /// Further tokens, with what was said of them where that is asked for.
    Tokens(Vec<u32>, Vec<TokenLogprobs>),
    Ended(Box<Generation>),
    Failed(Problem),
}

/// What a request reads of its text.
#[derive(Debug)]
pub(super) struct Events {
    receiver: UnboundedReceiver<Event>,
    has_enough: Arc<AtomicBool>,
    _waiting: Waiting,
}

impl Events {
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// The text needn't go on: what is read of it is whole.
    pub fn enough(&mut self) {
        self.has_enough.store(true, Ordering::SeqCst);
        self.receiver.close();
    }
}

/// What is done with the texts that are held when the server has stopped.
pub type AtEnd = Box<dyn FnOnce(&mut Batch) + Send>;

/// A text that somebody asked for.
struct Job {
    prompt: Vec<u32>,
    options: DecodeOptions,
    events: UnboundedSender<Event>,
    has_enough: Arc<AtomicBool>,
    place: Place,
    asked: Instant,
}

/// A text under way.
struct Reader {
    events: UnboundedSender<Event>,
    has_enough: Arc<AtomicBool>,
    asked: Instant,
    last: Option<Instant>,
}

/// A handle on the thread; it ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Engine {
    /// None is the end.
    jobs: Sender<Option<Job>>,
    stopping: Arc<AtomicBool>,
    /// Where the thread has something to do at its end, which is then waited for.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held by the thread as long as it works.
    life: Weak<()>,
    metrics: Arc<ModelMetrics>,
    /// Texts that may be under way or wait.
    most: usize,
}

impl Engine {
    /// Starts a thread that lets `most_waiting` requests wait for a slot of `batch`, and does
    /// `at_end` with it when the server has stopped.
    pub fn start(
        batch: Batch,
        at_end: Option<AtEnd>,
        most_waiting: usize,
        metrics: Arc<ModelMetrics>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let most = batch.slots() + most_waiting;
        let mut worker = Worker {
            batch,
            pending: VecDeque::new(),
            readers: HashMap::new(),
            metrics: Arc::clone(&metrics),
            stopping: Arc::clone(&stopping),
        };
        let is_awaited = at_end.is_some();
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || {
                worker.work(&queue);
                if let Some(at_end) = at_end {
                    at_end(&mut worker.batch);
                }
                drop(alive);
            })?;
        Ok(Self {
            jobs,
            stopping,
            thread: Mutex::new(Some(thread).filter(|_| is_awaited)),
            life,
            metrics,
            most,
        })
    }

    /// Puts texts into the queue, all or none.
    pub fn submit(&self, prompt: &[u32], all: Vec<DecodeOptions>) -> Result<Vec<Events>, Problem> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(stopping());
        }
        if all.len() > self.most {
            let message = format!(
                "{} texts are more than this server has places, {}",
                all.len(),
                self.most
            );
            return Err(Problem::field("n", message));
        }
        let places = Place::take(&self.metrics, all.len(), self.most)?;
        let mut receivers = Vec::with_capacity(all.len());
        for (options, place) in all.into_iter().zip(places) {
            let (events, receiver) = unbounded_channel();
            let has_enough = Arc::default();
            let job = Job {
                prompt: prompt.to_vec(),
                options,
                events,
                has_enough: Arc::clone(&has_enough),
                place: place.clone(),
                asked: Instant::now(),
            };
            if self.jobs.send(Some(job)).is_err() {
                return Err(Problem::failed("the model's thread has ended"));
            }
            receivers.push(Events {
                receiver,
                has_enough,
                _waiting: Waiting(place),
            });
        }
        Ok(receivers)
    }

    /// Whether the thread still works.
    pub fn lives(&self) -> bool {
        self.life.strong_count() > 0
    }

    /// Ends what is under way and what waits, and takes nothing more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Stops, and waits until what is to be done at the end is done.
    pub fn end(&self) {
        self.stop();
        let thread = self.thread.lock();
        let thread = thread.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.jobs.send(None);
            let _ = thread.join();
        }
    }
}

fn stopping() -> Problem {
    Problem::not_now("the server is stopping")
}

struct Worker {
    batch: Batch,
    /// Texts that wait for room, the first one first.
    pending: VecDeque<Job>,
    readers: HashMap<TextId, Reader>,
    metrics: Arc<ModelMetrics>,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    /// Works until nobody can ask for a text any more.
    fn work(&mut self, queue: &Receiver<Option<Job>>) {
        let mut ends = false;
        loop {
            if self.batch.active() == 0 && self.pending.is_empty() {
                if ends {
                    return;
                }
                match queue.recv() {
                    Ok(Some(job)) => self.pending.push_back(job),
                    Ok(None) | Err(_) => return,
                }
            }
            // Who went away is forgotten at once, however long the others wait.
            for job in queue.try_iter() {
                ends |= job.is_none();
                self.pending.extend(job);
            }
            let gone = |job: &Job| job.events.is_closed();
            for _ in self.pending.iter().filter(|job| gone(job)) {
                self.metrics.ended(Outcome::Abandoned, None);
            }
            self.pending.retain(|job| !gone(job));
            while self.batch.has_room()
                && let Some(job) = self.pending.pop_front()
            {
                self.begin(job);
            }
            self.turn();
            self.dismiss();
            self.measure();
        }
    }

    fn measure(&self) {
        let (running, cached) = (self.batch.active(), self.batch.cached());
        let metrics = &self.metrics;
        metrics.running.store(running as u64, Ordering::SeqCst);
        metrics
            .cached_tokens
            .store(cached as u64, Ordering::Relaxed);
        metrics.passes(self.batch.stats());
    }

    fn begin(&mut self, job: Job) {
        let place = job.place.clone();
        if self.stopping.load(Ordering::SeqCst) {
            let _ = job.events.send(Event::Failed(stopping()));
        } else {
            match self.batch.begin(&job.prompt, job.options) {
                Ok(id) => {
                    let reader = Reader {
                        events: job.events,
                        has_enough: job.has_enough,
                        asked: job.asked,
                        last: None,
                    };
                    self.readers.insert(id, reader);
                    // Before the queue is seen to be shorter.
                    let running = self.batch.active() as u64;
                    self.metrics.running.store(running, Ordering::SeqCst);
                }
                Err(error) => {
                    self.metrics.ended(Outcome::Failed, None);
                    let _ = job.events.send(Event::Failed(Problem::of(&error)));
                }
            }
        }
        place.leave();
    }

    fn turn(&mut self) {
        let Self {
            batch,
            readers,
            metrics,
            ..
        } = self;
        batch.turn(&mut |id, progress| match progress {
            Progress::Tokens(tokens, said) => {
                if let Some(reader) = readers.get_mut(&id) {
                    reader.time(metrics, tokens.len());
                    let event = Event::Tokens(tokens.to_vec(), said.to_vec());
                    let _ = reader.events.send(event);
                }
            }
            Progress::Ended(generation) => {
                metrics.ended(Outcome::Done, Some(&generation.stats));
                if let Some(reader) = readers.remove(&id) {
                    metrics.whole.add(reader.asked.elapsed());
                    let _ = reader.events.send(Event::Ended(generation));
                }
            }
            Progress::Failed(error) => {
                metrics.ended(Outcome::Failed, None);
                if let Some(reader) = readers.remove(&id) {
                    let _ = reader.events.send(Event::Failed(Problem::of(error)));
                }
            }
        });
    }

    /// Ends texts that nobody reads any more; all where the server stops.
    fn dismiss(&mut self) {
        let stops = self.stopping.load(Ordering::SeqCst);
        let gone = |reader: &Reader| stops || reader.events.is_closed();
        let all = self.readers.iter().filter(|(_, reader)| gone(reader));
        let mut all: Vec<TextId> = all.map(|(id, _)| *id).collect();
        all.sort_unstable();
        for id in all {
            let generation = self.batch.cancel(id);
            let stats = generation.map(|generation| generation.stats);
            if let Some(reader) = self.readers.remove(&id) {
                let outcome = if reader.has_enough.load(Ordering::SeqCst) {
                    self.metrics.whole.add(reader.asked.elapsed());
                    Outcome::Done
                } else {
                    Outcome::Abandoned
                };
                self.metrics.ended(outcome, stats.as_ref());
                let _ = reader.events.send(Event::Failed(stopping()));
            }
        }
    }
}

impl Reader {
    fn time(&mut self, metrics: &ModelMetrics, tokens: usize) {
        let now = Instant::now();
        match self.last.replace(now) {
            None => metrics.first_token.add(now - self.asked),
            Some(last) => {
                let each = (now - last) / u32::try_from(tokens.max(1)).unwrap_or(u32::MAX);
                (0..tokens).for_each(|_| metrics.between_tokens.add(each));
            }
        }
    }
}
