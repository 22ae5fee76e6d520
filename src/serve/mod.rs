//! `dlc serve`: models over HTTP, in OpenAI's dialect.
//!
//! One thread answers connections, one for each model continues texts. Never prints, and never reads
//! the environment; all of HTTP's types stay here.

mod answer;
mod app;
mod engine;
mod fields;
mod inference;
mod keys;
mod limits;
mod metrics;
mod models;
mod openai;
mod pictures;
mod places;
mod problem;
mod readers;
mod state;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

pub use self::engine::AtEnd;
pub use self::keys::Keys;
pub use self::limits::Limits;
use self::models::Models;
pub use self::models::{Load, Parts, TextInfo, TextParts};
pub use self::pictures::{Order, Paint, PaintError, Painted};
use self::state::App;

/// How often a stop is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Time that answers have to say that they are broken off.
const FAREWELL: Duration = Duration::from_millis(500);

/// What is served, and how.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Bounds of every request.
    pub limits: Limits,
    /// Who may ask.
    pub keys: Keys,
    /// Requests that wait while as many as can are under way.
    pub max_queue: usize,
    /// Time for answers that are under way when the server stops.
    pub grace: Duration,
}

/// Tells of models as they are loaded: the name, and why it failed.
pub type OnLoaded = Box<dyn FnMut(&str, Result<(), &str>) + Send>;

/// Answers on `listener` until `stop` is set, and then until what is under way is done or its time
/// is up. Models are loaded meanwhile, in their order. False if none could be.
///
/// # Errors
/// What the system says of the socket.
pub fn serve(
    listener: TcpListener,
    models: Vec<(String, Load)>,
    options: ServeOptions,
    stop: &Arc<AtomicBool>,
    mut on_loaded: OnLoaded,
) -> io::Result<bool> {
    let app = Arc::new(App {
        models: Models::new(models.iter().map(|(name, _)| name.clone())),
        limits: options.limits,
        keys: options.keys,
        metrics: metrics::Metrics::default(),
        stopping: AtomicBool::new(false),
    });
    let (of_loader, stops) = (Arc::clone(&app), Arc::clone(stop));
    let failed = Arc::new(AtomicBool::new(false));
    let none_loaded = Arc::clone(&failed);
    std::thread::Builder::new()
        .name("loader".into())
        .spawn(move || {
            let mut loaded = 0;
            for (name, load) in models {
                if let Ok(model) = of_loader.models.find(&name) {
                    let outcome = model.load(load, options.max_queue);
                    loaded += usize::from(outcome.is_ok());
                    on_loaded(
                        &name,
                        outcome.as_ref().map(|&()| ()).map_err(String::as_str),
                    );
                }
            }
            if loaded == 0 {
                none_loaded.store(true, Ordering::SeqCst);
                stops.store(true, Ordering::SeqCst);
            }
        })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(answer(listener, &app, stop, options.grace))?;
    for model in app.models.all() {
        model.end();
    }
    Ok(!failed.load(Ordering::SeqCst))
}

async fn answer(
    listener: TcpListener,
    app: &Arc<App>,
    stop: &Arc<AtomicBool>,
    grace: Duration,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (end, ends) = oneshot::channel::<()>();
    let server = axum::serve(listener, app::router(Arc::clone(app)));
    let server = server.with_graceful_shutdown(async move {
        let _ = ends.await;
    });
    let mut server = tokio::spawn(server.into_future());
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK).await;
    }
    app.stopping.store(true, Ordering::SeqCst);
    drop(end);
    if let Ok(ended) = tokio::time::timeout(grace, &mut server).await {
        return ended.unwrap_or(Ok(()));
    }
    for model in app.models.all() {
        model.stop();
    }
    let _ = tokio::time::timeout(FAREWELL, &mut server).await;
    Ok(())
}
