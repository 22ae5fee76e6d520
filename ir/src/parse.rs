//! Parses the text form. Types are inferred anew and must agree with those in the text.
//!
//! The text may be anyone's: what inference takes more than linear time for is counted before.

mod attributes;

use std::collections::HashMap;
use std::str::FromStr;

use self::attributes::Attributes;
use crate::block::BlockKind;
use crate::builder::GraphBuilder;
use crate::dim::{Dim, Rounding, sym};
use crate::error::IrError;
use crate::graph::{CachePart, CacheRole, Graph, Operand};
use crate::index::ValueId;
use crate::op::OpKind;
use crate::types::{DType, Shape, ValueType};
use crate::weight::WeightTable;

/// Most axes of a type, most terms of an axis, and most factors of a term.
const MOST_AXES: usize = 32;
const MOST_TERMS: usize = 64;
const MOST_FACTORS: usize = 8;
/// Most operands and attributes of a node, and of a mixture of experts, whose types take linear time.
const MOST_WORDS: usize = 1024;
const MOST_WORDS_OF_EXPERTS: usize = 1 << 13;
/// What the lines of weights begin with.
const WEIGHT: &str = "weight @";
/// What a message quotes of a line, in characters.
const QUOTED: usize = 400;

/// Parses one graph and the weights that it names; the weights have types, but no data.
///
/// # Errors
/// [`IrError::Parse`] with the line, for text that is no graph or a graph that doesn't type.
pub fn parse_graph(text: &str) -> Result<(Graph, WeightTable), IrError> {
    let mut weights = WeightTable::default();
    for_each_weight(text, |line, name, dtype, shape| {
        weights
            .declare(name, dtype, shape)
            .map(|_| ())
            .map_err(|e| line.wrap(&e))
    })?;
    let graph = parse_nodes(text, &weights)?;
    Ok((graph, weights))
}

/// Parses one graph over weights that are there already.
///
/// # Errors
/// [`IrError::Parse`] as [`parse_graph`], and for a weight that `weights` lacks or has with another
/// type.
pub fn parse_graph_over(text: &str, weights: &WeightTable) -> Result<Graph, IrError> {
    for_each_weight(text, |line, name, dtype, shape| {
        match weights.find(name).map(|id| &weights[id]) {
            Some(weight) if weight.dtype == dtype && weight.shape == shape => Ok(()),
            Some(weight) => line.fail(format!("weight @{name} is {}", weight.ty())),
            None => line.fail(format!("weight @{name} isn't there")),
        }
    })?;
    parse_nodes(text, weights)
}

/// Names of the weights that a graph's text names, in its order.
pub fn weight_names(text: &str) -> impl Iterator<Item = &str> {
    let declared = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(WEIGHT));
    declared.filter_map(|rest| Some(rest.rsplit_once(": ")?.0))
}

fn parse_nodes(text: &str, weights: &WeightTable) -> Result<Graph, IrError> {
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(i, l)| Line {
            number: i + 1,
            text: l.trim(),
        })
        .filter(|l| !l.text.is_empty());
    let head = lines.next().ok_or(IrError::Parse {
        line: 1,
        problem: "the text is empty".into(),
    })?;
    let name = head.between("graph ", " {")?;
    let mut parser = Parser {
        builder: GraphBuilder::new(name, weights),
        weights,
        values: HashMap::new(),
    };
    let mut closed = None;
    for line in lines.filter(|l| !l.text.starts_with("weight ")) {
        if closed.is_some() {
            return line.fail("stands after the graph's end");
        }
        if line.text == "}" {
            closed = Some(line);
        } else {
            parser.line(line)?;
        }
    }
    let last = closed.ok_or(IrError::Parse {
        line: text.lines().count().max(1),
        problem: "the graph isn't closed by `}`".into(),
    })?;
    parser.builder.finish().map_err(|e| last.wrap(&e))
}

fn for_each_weight<'a>(
    text: &'a str,
    mut each: impl FnMut(Line<'a>, &str, DType, &[usize]) -> Result<(), IrError>,
) -> Result<(), IrError> {
    for (i, raw) in text.lines().enumerate() {
        let line = Line {
            number: i + 1,
            text: raw.trim(),
        };
        let Some(rest) = line.text.strip_prefix(WEIGHT) else {
            continue;
        };
        let (name, ty) = rest
            .rsplit_once(": ")
            .ok_or_else(|| line.error("expected `weight @name: type`"))?;
        let ty = line.value_type(ty)?;
        let shape = ty
            .shape
            .0
            .iter()
            .map(Dim::known)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| line.error("weights have no symbolic axes"))?;
        if shape
            .iter()
            .try_fold(8usize, |n, &d| n.checked_mul(d))
            .is_none()
        {
            return line.fail("the weight's size is absurd");
        }
        each(line, name, ty.dtype, &shape)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn error(self, problem: impl Into<String>) -> IrError {
        let mut problem = problem.into();
        if let Some((end, _)) = problem.char_indices().nth(QUOTED) {
            problem.truncate(end);
            problem.push_str("...");
        }
        IrError::Parse {
            line: self.number,
            problem,
        }
    }

    fn fail<T>(self, problem: impl Into<String>) -> Result<T, IrError> {
        Err(self.error(problem))
    }

    fn wrap(self, error: &IrError) -> IrError {
        self.error(error.to_string())
    }

    fn between(self, prefix: &str, suffix: &str) -> Result<&'a str, IrError> {
        let inner = self
            .text
            .strip_prefix(prefix)
            .and_then(|t| t.strip_suffix(suffix))
            .filter(|t| !t.is_empty());
        inner.ok_or_else(|| self.error(format!("expected `{prefix}...{suffix}`")))
    }

    fn split(self, text: &'a str, at: &str) -> Result<(&'a str, &'a str), IrError> {
        text.split_once(at)
            .ok_or_else(|| self.error(format!("expected `{at}`")))
    }

    fn number<T: FromStr>(self, text: &str) -> Result<T, IrError> {
        text.parse()
            .map_err(|_| self.error(format!("`{text}` doesn't fit here")))
    }

    fn value_type(self, text: &str) -> Result<ValueType, IrError> {
        let (dtype, dims) = text
            .strip_suffix(']')
            .and_then(|t| t.split_once('['))
            .ok_or_else(|| self.error(format!("`{text}` is not a type")))?;
        let dtype = DType::from_name(dtype)
            .ok_or_else(|| self.error(format!("`{dtype}` is not an element type")))?;
        let dims = dims
            .split(", ")
            .filter(|d| !d.is_empty())
            .take(MOST_AXES + 1)
            .map(|d| self.dim(d))
            .collect::<Result<Vec<_>, _>>()?;
        let known = dims
            .iter()
            .filter_map(Dim::known)
            .try_fold(8usize, usize::checked_mul);
        if dims.len() > MOST_AXES || known.is_none() {
            return self.fail(format!(
                "more than {MOST_AXES} axes, or more elements than can be counted: {text}"
            ));
        }
        Ok(ValueType {
            dtype,
            shape: Shape(dims),
        })
    }

    fn dim(self, text: &str) -> Result<Dim, IrError> {
        let mut sum: Option<Dim> = None;
        if text.split('+').nth(MOST_TERMS).is_some() {
            return self.fail(format!("an axis has more than {MOST_TERMS} terms: {text}"));
        }
        for term in text.split('+') {
            let term = self.term(term, text)?;
            sum = Some(sum.map_or_else(|| term.clone(), |s| s.plus(&term)));
        }
        sum.ok_or_else(|| self.error("an axis is missing"))
    }

    /// A product of numbers, symbols and parts of symbols.
    fn term(self, term: &str, dim: &str) -> Result<Dim, IrError> {
        if term.split('*').nth(MOST_FACTORS).is_some() {
            return self.fail(format!(
                "a term has more than {MOST_FACTORS} factors: {dim}"
            ));
        }
        term.split('*').try_fold(Dim::from(1), |product, factor| {
            Ok(product.times(&self.factor(factor, dim)?))
        })
    }

    fn factor(self, factor: &str, dim: &str) -> Result<Dim, IrError> {
        let part = Rounding::ALL.into_iter().find_map(|rounding| {
            let inner = factor.strip_prefix(rounding.name())?.strip_prefix('(')?;
            Some((inner.strip_suffix(')')?.split_once('/')?, rounding))
        });
        let (symbol, divisor) = match part {
            Some(((symbol, divisor), rounding)) => (symbol, Some((divisor, rounding))),
            None => (factor, None),
        };
        let begins = |first: fn(char) -> bool| symbol.chars().next().is_some_and(first);
        let symbol = if begins(|c| c.is_ascii_digit()) && divisor.is_none() {
            Dim::from(self.number::<usize>(symbol)?)
        } else if begins(|c| c.is_ascii_alphabetic() || c == '_') && !symbol.contains(['(', '/']) {
            sym(symbol)
        } else {
            return self.fail(format!("`{dim}` is not an axis"));
        };
        let Some((divisor, rounding)) = divisor else {
            return Ok(symbol);
        };
        symbol
            .divided(self.number(divisor)?, rounding)
            .ok_or_else(|| self.error(format!("`{dim}` is not an axis")))
    }

    /// Splits off a trailing `(cache layer=3 key)`.
    fn cache_role(self, text: &'a str) -> Result<(&'a str, Option<CacheRole>), IrError> {
        let Some((rest, role)) = text
            .strip_suffix(')')
            .and_then(|t| t.split_once(" (cache layer="))
        else {
            return Ok((text, None));
        };
        let (layer, part) = self.split(role, " ")?;
        let part = [CachePart::Key, CachePart::Value]
            .into_iter()
            .find(|p| p.name() == part);
        let part =
            part.ok_or_else(|| self.error("a cache is of keys (`key`) or values (`value`)"))?;
        Ok((
            rest,
            Some(CacheRole {
                layer: self.number(layer)?,
                part,
            }),
        ))
    }
}

struct Parser<'w> {
    builder: GraphBuilder<&'w WeightTable>,
    weights: &'w WeightTable,
    values: HashMap<String, ValueId>,
}

impl Parser<'_> {
    fn line(&mut self, line: Line<'_>) -> Result<(), IrError> {
        if let Some(rest) = line.text.strip_prefix("input ") {
            self.input(line, rest)
        } else if let Some(rest) = line.text.strip_prefix("output ") {
            self.output(line, rest)
        } else if line.text.starts_with("block ") {
            self.open_block(line)
        } else if let Some(value) = line.text.strip_prefix("} to ") {
            let value = self.value(line, value)?;
            self.builder.close_block(value).map_err(|e| line.wrap(&e))
        } else if line.text.starts_with('%') {
            self.node(line)
        } else {
            line.fail("expected `input`, `output`, `block`, `%value = op ...` or `}`")
        }
    }

    fn input(&mut self, line: Line<'_>, rest: &str) -> Result<(), IrError> {
        let rest = Line {
            number: line.number,
            text: rest,
        };
        let (rest, cache) = rest.cache_role(rest.text)?;
        let (name, ty) = rest
            .rsplit_once(": ")
            .ok_or_else(|| line.error("expected `input name: type`"))?;
        let value = self
            .builder
            .input(name, line.value_type(ty)?, cache)
            .map_err(|e| line.wrap(&e))?;
        self.define(line, name, value)
    }

    fn output(&mut self, line: Line<'_>, rest: &str) -> Result<(), IrError> {
        let rest = Line {
            number: line.number,
            text: rest,
        };
        let (rest, cache) = rest.cache_role(rest.text)?;
        let (name, value) = rest
            .rsplit_once(" = ")
            .ok_or_else(|| line.error("expected `output name = %value`"))?;
        let value = self.value(line, value)?;
        self.builder.output(name, value, cache);
        Ok(())
    }

    fn open_block(&mut self, line: Line<'_>) -> Result<(), IrError> {
        let (name, rest) = line.split(line.between("block ", " {")?, " (")?;
        let (kind, rest) = line.split(rest, " layer=")?;
        let (layer, input) = line.split(rest, ") from ")?;
        let kind = BlockKind::ALL.into_iter().find(|k| k.name() == kind);
        let kind = kind.ok_or_else(|| {
            line.error(format!(
                "a block is one of {}",
                BlockKind::ALL.map(BlockKind::name).join(", ")
            ))
        })?;
        let input = self.value(line, input)?;
        self.builder
            .open_block(name, kind, line.number(layer)?, input)
            .map_err(|e| line.wrap(&e))
    }

    fn node(&mut self, line: Line<'_>) -> Result<(), IrError> {
        let (outputs, rest) = line.split(line.text, " = ")?;
        let (call, types) = rest
            .rsplit_once(" : ")
            .ok_or_else(|| line.error("expected ` : type` at the end"))?;
        let types = types
            .split("], ")
            .map(|t| line.value_type(&format!("{}]", t.trim_end_matches(']'))))
            .collect::<Result<Vec<_>, _>>()?;
        let (name, arguments) = line.split(call, " ")?;
        let most = if name == OpKind::Experts.name() {
            MOST_WORDS_OF_EXPERTS
        } else {
            MOST_WORDS
        };
        if arguments.split(' ').nth(most).is_some() {
            return line.fail(format!(
                "{name} has more than {most} operands and attributes"
            ));
        }
        let mut words = arguments.split(' ').peekable();
        let mut inputs = Vec::new();
        while let Some(word) = words.next_if(|w| w.starts_with(['%', '@'])) {
            inputs.push(self.operand(line, word.trim_end_matches(','))?);
        }
        let attributes = Attributes {
            line,
            pairs: words
                .map(|w| line.split(w, "="))
                .collect::<Result<_, _>>()?,
        };
        let op = attributes.op(name, types.first())?;
        let made = self
            .builder
            .add_node(op, inputs)
            .map_err(|e| line.wrap(&e))?;
        let inferred: Vec<&ValueType> = made.iter().map(|v| self.builder.value_type(*v)).collect();
        if inferred != types.iter().collect::<Vec<_>>() {
            let inferred: Vec<String> = inferred.iter().map(ToString::to_string).collect();
            return line.fail(format!(
                "{name} makes {}, not the types written here",
                inferred.join(", ")
            ));
        }
        let names: Vec<&str> = outputs.split(", ").collect();
        if names.len() != made.len() {
            return line.fail(format!("{name} makes {} values", made.len()));
        }
        names.iter().zip(made).try_for_each(|(name, value)| {
            self.define(line, name.strip_prefix('%').unwrap_or(name), value)
        })
    }

    fn define(&mut self, line: Line<'_>, name: &str, value: ValueId) -> Result<(), IrError> {
        match self.values.insert(name.to_owned(), value) {
            Some(_) => line.fail(format!("%{name} is defined twice")),
            None => Ok(()),
        }
    }

    fn value(&self, line: Line<'_>, text: &str) -> Result<ValueId, IrError> {
        let name = text
            .strip_prefix('%')
            .ok_or_else(|| line.error(format!("`{text}` is not a value")))?;
        self.values
            .get(name)
            .copied()
            .ok_or_else(|| line.error(format!("%{name} isn't defined")))
    }

    fn operand(&self, line: Line<'_>, text: &str) -> Result<Operand, IrError> {
        match text.strip_prefix('@') {
            Some(name) => self
                .weights
                .find(name)
                .map(Operand::Weight)
                .ok_or_else(|| line.error(format!("weight @{name} isn't declared"))),
            None => self.value(line, text).map(Operand::Value),
        }
    }
}
