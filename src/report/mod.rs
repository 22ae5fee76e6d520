//! Text for people: tables, bar charts and summaries; and pictures. Pure: data in, text or bytes
//! out; never prints.

mod chart;
mod heatmap;
mod picture;
mod plot;
mod summary;
mod table;

pub use chart::score_chart;
pub use heatmap::heat_map;
pub use picture::{Layout, Picture};
pub use plot::speedup_plot;
pub use summary::{
    bundle_summary, checks_table, module_summary, onnx_summary, pass_summary, percent,
};
pub use table::{Table, ranged};
