//! `/v1/images/generations`: pictures of a prompt.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::serve::fields::Fields;
use crate::serve::pictures::Order;
use crate::serve::problem::{Json, Problem};
use crate::serve::state::{App, Received};

/// Pictures of one request, as in OpenAI's API.
const MOST_PICTURES: usize = 10;
/// Steps of a sampler.
const MOST_STEPS: usize = 1000;

/// Makes the pictures.
pub(in crate::serve) async fn images(
    State(app): State<Arc<App>>,
    Received(body): Received,
) -> Result<Json, Problem> {
    let mut fields = Fields::parse(&body)?;
    let model = app.model(&mut fields)?;
    let painter = model.pictures()?;
    let order = order(&mut fields, app.limits.max_pixels)?;
    fields.finish()?;
    let mut painted = app
        .limits
        .deadline()
        .keep(painter.read(vec![order]))
        .await??;
    let painted = painted
        .pop()
        .ok_or_else(|| Problem::failed("the model's thread made nothing"))?;
    let [width, height] = painted.size;
    let data: Vec<Value> = painted
        .files
        .iter()
        .map(|file| json!({"b64_json": STANDARD.encode(file)}))
        .collect();
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let created = created.map_or(0, |time| time.as_secs());
    Ok(Json(json!({
        "created": created, "data": data, "output_format": "png", "size": format!("{width}x{height}"),
        "notes": painted.notes,
    })))
}

/// What a request asks for.
fn order(fields: &mut Fields, max_pixels: usize) -> Result<Order, Problem> {
    fields.only(
        "response_format",
        &"b64_json".into(),
        "pictures are sent as `b64_json`",
    )?;
    fields.only("output_format", &"png".into(), "pictures are PNG files")?;
    for name in ["quality", "background", "moderation"] {
        fields.only(
            name,
            &"auto".into(),
            "only `auto` is, which leaves it to the model",
        )?;
    }
    Ok(Order {
        prompt: fields.need("prompt", "what the pictures show, a text")?,
        negative_prompt: fields.take("negative_prompt", "a text")?,
        count: fields.count("n", 1..=MOST_PICTURES)?.unwrap_or(1),
        size: size(
            fields.take("size", "a text such as `512x512`, or `auto`")?,
            max_pixels,
        )?,
        seed: fields.take("seed", "a whole number")?.unwrap_or_default(),
        steps: fields.count("steps", 1..=MOST_STEPS)?,
        guidance: fields.number("guidance_scale", 0.0..=100.0)?.map(f64::from),
    })
}

/// Width and height of `WIDTHxHEIGHT`.
fn size(text: Option<String>, max_pixels: usize) -> Result<Option<[usize; 2]>, Problem> {
    let Some(text) = text.filter(|text| text != "auto") else {
        return Ok(None);
    };
    let side = |side: &str| side.parse().ok().filter(|pixels: &usize| *pixels > 0);
    let sides = text.split_once('x');
    let sides = sides.and_then(|(width, height)| Some([side(width)?, side(height)?]));
    let Some([width, height]) = sides else {
        let message = "`size` must be WIDTHxHEIGHT in pixels, or `auto`";
        return Err(Problem::field("size", message));
    };
    if width
        .checked_mul(height)
        .is_none_or(|pixels| pixels > max_pixels)
    {
        let message = format!("`size` may have {max_pixels} pixels at most (--max-pixels)");
        return Err(Problem::field("size", message));
    }
    Ok(Some([width, height]))
}
