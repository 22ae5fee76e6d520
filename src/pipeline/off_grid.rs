//! Weights off the grid that they were quantised to: the same function, with numbers that another
//! copy of so many bits no longer reproduces, as in a checkpoint that was never quantised.
//!
//! Norms are folded into the matrices after them, values are rotated and outputs rotated back, the
//! rows of the up projection are scaled and the columns of the down projection scaled back.

use std::collections::BTreeMap;
use std::sync::Arc;

use dlc_ir::{DType, Expr};
use dlc_methods::diffusion::noise;
use serde_json::{Map, Value};

/// The tensors of a checkpoint, by name: shape and elements.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Expr)>;

/// Families whose attention and MLP are of the kind above.
const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// How far the logarithms of the factors of the up projection scatter.
const SPREAD: f64 = 0.25;

/// The sizes of the model.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    inner: usize,
}

/// Rewrites the tensors of a model of this configuration. What is drawn follows from the number of
/// the layer alone.
///
/// Says why it can't be done for a model of another family.
pub(super) fn rewrite(tensors: &mut Tensors, config: &Map<String, Value>) -> Result<(), String> {
    let family = config.get("model_type").and_then(Value::as_str);
    if !family.is_some_and(|family| FAMILIES.contains(&family)) {
        return Err(format!(
            "--off-grid is for {}. Leave it out",
            FAMILIES.join(", ")
        ));
    }
    let size = |key: &str| {
        let size = config.get(key).and_then(Value::as_u64);
        size.map_or(0, |n| n as usize)
    };
    let (heads, hidden) = (size("num_attention_heads").max(1), size("hidden_size"));
    let shape = Shape {
        layers: size("num_hidden_layers"),
        kv_heads: size("num_key_value_heads"),
        head_dim: Some(size("head_dim"))
            .filter(|n| *n > 0)
            .unwrap_or(hidden / heads),
        hidden,
        inner: size("intermediate_size"),
    };
    for layer in 0..shape.layers {
        Layer {
            tensors,
            prefix: format!("model.layers.{layer}."),
        }
        .rewrite(&shape, layer as u64);
    }
    Ok(())
}

/// The tensors of a layer.
struct Layer<'t> {
    tensors: &'t mut Tensors,
    prefix: String,
}

impl Layer<'_> {
    fn rewrite(&mut self, shape: &Shape, seed: u64) {
        self.fold(
            "input_layernorm",
            &["q_proj", "k_proj", "v_proj"].map(|p| format!("self_attn.{p}")),
        );
        self.fold(
            "post_attention_layernorm",
            &["gate_proj", "up_proj"].map(|p| format!("mlp.{p}")),
        );
        let width = shape.head_dim;
        let drawn = noise(seed, width * width + shape.inner);
        let (rotation, factors) = drawn.split_at(width * width);
        let rotation = orthogonal(rotation, width);
        let turned = constant(&rotation);
        for (name, columns) in [
            ("self_attn.v_proj.weight", shape.hidden),
            ("self_attn.v_proj.bias", 1),
        ] {
            self.change(name, |values| {
                rotate_heads(&values, &turned, shape, columns)
            });
        }
        let back = Arc::new(Expr::Transpose {
            input: turned,
            columns: width,
        });
        // Every head's columns of a row are a row of their own here.
        self.change("self_attn.o_proj.weight", |output| Expr::MatMul {
            left: Arc::new(output),
            right: back,
            inner: width,
            columns: width,
        });
        let factors: Vec<f32> = factors
            .iter()
            .map(|x| (f64::from(*x) * SPREAD).exp() as f32)
            .collect();
        let inverse: Vec<f32> = factors.iter().map(|x| 1.0 / x).collect();
        let (factors, inverse) = (constant(&factors), constant(&inverse));
        for (name, columns) in [
            ("mlp.up_proj.weight", shape.hidden),
            ("mlp.up_proj.bias", 1),
        ] {
            self.change(name, |up| times(up, &factors, columns, 1));
        }
        self.change("mlp.down_proj.weight", |down| {
            times(down, &inverse, 1, shape.hidden)
        });
    }

    /// Multiplies the columns of the matrices by the norm's weight, which becomes 1.
    fn fold(&mut self, norm: &str, users: &[String]) {
        let name = format!("{norm}.weight");
        let Some((_, weight)) = self.tensors.get(&format!("{}{name}", self.prefix)).cloned() else {
            return;
        };
        let ones = vec![1f32; weight.elements()];
        let weight = Arc::new(weight);
        for user in users {
            let rows = |matrix: &Expr| matrix.elements() / weight.elements().max(1);
            self.change(&format!("{user}.weight"), |matrix| {
                let rows = rows(&matrix);
                times(matrix, &weight, 1, rows)
            });
        }
        self.change(&name, |_| Arc::unwrap_or_clone(constant(&ones)));
    }

    /// Puts other elements into a tensor, where the model has it.
    fn change(&mut self, name: &str, make: impl FnOnce(Expr) -> Expr) {
        if let Some((_, data)) = self.tensors.get_mut(&format!("{}{name}", self.prefix)) {
            *data = make(data.clone());
        }
    }
}

/// The rows of each head, turned.
fn rotate_heads(values: &Expr, rotation: &Arc<Expr>, shape: &Shape, columns: usize) -> Expr {
    let length = shape.head_dim * columns;
    let head = |head: usize| {
        Arc::new(Expr::MatMul {
            left: Arc::clone(rotation),
            right: Arc::new(values.clone().slice(head * length, length)),
            inner: shape.head_dim,
            columns,
        })
    };
    Expr::Join((0..shape.kv_heads).map(head).collect())
}

/// Each entry times that of a vector, stretched to the matrix.
fn times(matrix: Expr, vector: &Arc<Expr>, each: usize, times: usize) -> Expr {
    let stretched = Expr::Repeat {
        input: Arc::clone(vector),
        each,
        times,
    };
    Expr::Mul(Arc::new(matrix), Arc::new(stretched))
}

fn constant(numbers: &[f32]) -> Arc<Expr> {
    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Arc::new(Expr::constant(bytes, DType::F32))
}

/// A matrix whose rows are orthonormal, made of those of a random one (Gram and Schmidt, twice, in
/// double precision).
fn orthogonal(random: &[f32], width: usize) -> Vec<f32> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for row in random.chunks_exact(width.max(1)) {
        let mut row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        for _ in 0..2 {
            for other in &rows {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        rows.push(row.into_iter().map(|x| x / norm).collect());
    }
    rows.concat().into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_rotations_are_orthogonal() {
        let width = 12;
        let rotation = orthogonal(&noise(3, width * width), width);
        for (i, a) in rotation.chunks(width).enumerate() {
            for (j, b) in rotation.chunks(width).enumerate() {
                let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 1e-6, "{i} {j}: {dot}");
            }
        }
    }
}
