//! Text for people: tables, bar charts and summaries. Pure: data in, text out; never prints.

mod chart;
mod summary;
mod table;

pub use chart::score_chart;
pub use summary::{bundle_summary, checks_table, module_summary, onnx_summary, pass_summary, percent};
pub use table::Table;
