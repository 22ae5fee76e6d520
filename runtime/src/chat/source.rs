//! Prepares a template's source for the engine: Hugging Face's `{% generation %}`, Python's `%`
//! between texts, and limits.
//!
//! Every list, dict, sum, product and filtered value passes through `__checked`, and what is
//! compared with something else than a constant too, so that no value grows beyond what its use can
//! cost, see [`super::limits`]. Line numbers stay.

use super::lexer::{Kind, Part, Tag, Token, parts};

/// The longest template; those of models have up to some 50 KB.
const SOURCE_CAP: usize = 512 << 10;
/// Tokens of one tag, tags of a template, and how deep brackets and blocks may lie in each other.
const MOST_TOKENS: usize = 8192;
const MOST_TAGS: usize = 32_768;
const MOST_BRANCHES: usize = 2048;
const MOST_NESTED: usize = 64;

pub(super) const CHECKED: &str = "__checked";
pub(super) const KEPT: &str = "__kept";
pub(super) const MODULO: &str = "__modulo";

/// The source that the engine gets, or what is too much of the template.
pub(super) fn prepare(source: &str) -> Result<String, String> {
    if source.len() > SOURCE_CAP {
        return Err(format!(
            "is {} bytes long, more than the {SOURCE_CAP} that dlc reads",
            source.len()
        ));
    }
    let parts =
        parts(source).map_err(|line| format!("has a tag that doesn't end (line {line})"))?;
    let mut text = String::with_capacity(source.len() * 2);
    let (mut tags, mut branches, mut blocks) = (0, 0, 0_usize);
    for part in parts {
        match part {
            Part::Verbatim(verbatim) => text.push_str(verbatim),
            Part::Tag(tag) => {
                tags += 1;
                check_count(tags, MOST_TAGS, "tags")?;
                check_count(tag.tokens.len(), MOST_TOKENS, "tokens in one tag")?;
                check_count(deepest(&tag.tokens), MOST_NESTED, "brackets in brackets")?;
                if tag.is_statement() {
                    blocks = (blocks + usize::from(opens_block(&tag)))
                        .saturating_sub(usize::from(closes_block(&tag)));
                    check_count(blocks, MOST_NESTED, "blocks in blocks")?;
                    // Each lies in the `else` of the one before.
                    branches += usize::from(name(&tag) == "elif");
                    check_count(branches, MOST_BRANCHES, "`elif`")?;
                }
                emit_tag(&tag, &mut text);
            }
        }
    }
    Ok(text)
}

fn check_count(found: usize, most: usize, what: &str) -> Result<(), String> {
    if found > most {
        Err(format!(
            "has more than {most} {what}, which no chat template needs"
        ))
    } else {
        Ok(())
    }
}

fn deepest(tokens: &[Token]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for token in tokens {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn name<'s>(tag: &Tag<'s>) -> &'s str {
    tag.tokens.first().map_or("", |token| token.text)
}

fn opens_block(tag: &Tag) -> bool {
    match name(tag) {
        "set" => equals(&tag.tokens).is_none(),
        "if" | "for" | "macro" | "call" | "filter" | "with" | "block" | "autoescape"
        | "generation" => true,
        _ => false,
    }
}

fn closes_block(tag: &Tag) -> bool {
    name(tag).starts_with("end")
}

/// Where `=` stands outside of brackets.
fn equals(tokens: &[Token]) -> Option<usize> {
    outside(tokens).find(|&at| tokens[at].text == "=")
}

/// The places that are in no bracket.
fn outside<'t>(tokens: &'t [Token]) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0_usize;
    (0..tokens.len()).filter(move |&at| {
        match tokens[at].kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    })
}

fn emit_tag(tag: &Tag, text: &mut String) {
    text.push_str(tag.open);
    if tag.is_statement() {
        emit_statement(&tag.tokens, text);
    } else {
        emit_expression(&tag.tokens, text);
    }
    text.push_str(tag.close);
}

fn emit_statement(tokens: &[Token], text: &mut String) {
    let Some(first) = tokens.first() else { return };
    let rest = &tokens[1..];
    text.push_str(first.space);
    text.push_str(match first.text {
        "generation" => "if true",
        "endgeneration" => "endif",
        other => other,
    });
    let verbatim = match first.text {
        "set" => equals(rest).map_or(rest.len(), |at| at + 1),
        "for" => outside(rest)
            .find(|&at| rest[at].text == "in")
            .map_or(0, |at| at + 1),
        "call" if rest.first().is_some_and(|token| token.text == "(") => group(rest, 0),
        "if" | "elif" | "with" | "call" | "macro" | "filter" | "print" | "do" | "autoescape"
        | "include" | "import" | "extends" => 0,
        _ => rest.len(),
    };
    let (verbatim, rest) = rest.split_at(verbatim);
    copy(verbatim, text);
    if first.text != "set" || rest.is_empty() {
        return emit_expression(rest, text);
    }
    let mut value = String::new();
    emit_expression(rest, &mut value);
    // Without brackets around it, too, `a, b` is a tuple.
    let tuple = outside(rest).any(|at| rest[at].text == ",");
    let function = if verbatim.iter().any(|token| token.text == ".") {
        KEPT
    } else {
        CHECKED
    };
    match (tuple, function) {
        (true, _) => text.push_str(&format!(" {function}(({value}))")),
        (false, KEPT) => text.push_str(&format!(" {KEPT}({value})")),
        (false, _) => text.push_str(&value),
    }
}

fn copy(tokens: &[Token], text: &mut String) {
    for token in tokens {
        text.push_str(token.space);
        text.push_str(token.text);
    }
}

/// The place after the bracket that closes the one at `at`.
fn group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(at) {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Words and signs that bind less than sums do.
fn separates(tokens: &[Token], at: usize) -> bool {
    let token = &tokens[at];
    if at > 0 && (tokens[at - 1].text == "." || is_test_name(tokens, at)) {
        return false;
    }
    match token.kind {
        Kind::Name => {
            matches!(
                token.text,
                "if" | "else" | "and" | "or" | "in" | "recursive"
            ) || (token.text == "not" && (at == 0 || tokens[at - 1].text != "is"))
        }
        Kind::Sign => matches!(token.text, "," | ":" | "=") || compares(token),
        _ => false,
    }
}

fn compares(token: &Token) -> bool {
    matches!(token.text, "==" | "!=" | "<" | ">" | "<=" | ">=" | "in")
}

/// Whether the word at `at` is the name of a test, after `is` or `is not`.
fn is_test_name(tokens: &[Token], at: usize) -> bool {
    let before = |n: usize| at.checked_sub(n).map(|at| tokens[at].text);
    (before(1) == Some("is") && tokens[at].text != "not")
        || (before(1) == Some("not") && before(2) == Some("is"))
}

fn emit_expression(tokens: &[Token], text: &mut String) {
    let mut at = 0;
    // Whether the operand before is a constant, and the comparison after it.
    let mut compared: Option<bool> = None;
    while at < tokens.len() {
        if tokens[at].kind == Kind::Close || separates(tokens, at) {
            copy(&tokens[at..=at], text);
            compared = compared.filter(|_| compares(&tokens[at]) || tokens[at].text == "not");
            at += 1;
            continue;
        }
        let end = operand_end(tokens, at);
        let operand = &tokens[at..end];
        let constant = is_constant(operand);
        let next = tokens.get(end);
        let compares_next = next.is_some_and(|token| compares(token) || token.text == "not")
            && !(constant || is_constant_after(tokens, end));
        let compared_before = compared == Some(false) && !constant;
        let mut value = String::new();
        emit_sum(operand, &mut value);
        if compares_next || compared_before {
            wrap(CHECKED, &value, text);
        } else {
            text.push_str(&value);
        }
        compared = next
            .is_some_and(|token| compares(token) || token.text == "not")
            .then_some(constant);
        at = end;
    }
}

fn is_constant(operand: &[Token]) -> bool {
    matches!(operand, [only] if only.kind == Kind::Literal || matches!(only.text, "true" | "false" | "none" | "True" | "False" | "None"))
}

/// Whether what the comparison at `at` compares with is a constant.
fn is_constant_after(tokens: &[Token], at: usize) -> bool {
    let start = at + 1 + usize::from(tokens.get(at).is_some_and(|token| token.text == "not"));
    start < tokens.len() && is_constant(&tokens[start..operand_end(tokens, start)])
}

fn operand_end(tokens: &[Token], start: usize) -> usize {
    let mut at = start;
    while at < tokens.len() && tokens[at].kind != Kind::Close && !separates(tokens, at) {
        at = if tokens[at].kind == Kind::Open {
            group(tokens, at)
        } else {
            at + 1
        };
    }
    at.max(start + 1)
}

/// `function(value)`, the white space in front of the value kept.
fn wrap(function: &str, value: &str, text: &mut String) {
    let inner = value.trim_start();
    text.push_str(&value[..value.len() - inner.len()]);
    text.push_str(&format!("{function}({inner})"));
}

/// Operands with the signs between them.
fn split<'t, 's>(
    tokens: &'t [Token<'s>],
    signs: &[&str],
) -> (Vec<&'t [Token<'s>]>, Vec<&'t Token<'s>>) {
    let (mut operands, mut between, mut start) = (Vec::new(), Vec::new(), 0);
    let places: Vec<usize> = outside(tokens).collect();
    for at in places {
        let binary = at > start
            && tokens[at].kind == Kind::Sign
            && signs.contains(&tokens[at].text)
            && ends_operand(&tokens[at - 1]);
        if binary {
            operands.push(&tokens[start..at]);
            between.push(&tokens[at]);
            start = at + 1;
        }
    }
    operands.push(&tokens[start..]);
    (operands, between)
}

fn ends_operand(token: &Token) -> bool {
    matches!(token.kind, Kind::Name | Kind::Literal | Kind::Close)
}

fn emit_sum(tokens: &[Token], text: &mut String) {
    let (operands, signs) = split(tokens, &["+", "-"]);
    let mut sum = String::new();
    for (i, operand) in operands.iter().enumerate() {
        if i > 0 {
            copy(std::slice::from_ref(signs[i - 1]), &mut sum);
        }
        let (joined, tildes) = split(operand, &["~"]);
        for (j, part) in joined.iter().enumerate() {
            if j > 0 {
                copy(std::slice::from_ref(tildes[j - 1]), &mut sum);
            }
            emit_product(part, &mut sum);
        }
    }
    if signs.iter().any(|sign| sign.text == "+") {
        wrap(CHECKED, &sum, text);
    } else {
        text.push_str(&sum);
    }
}

fn emit_product(tokens: &[Token], text: &mut String) {
    let (operands, signs) = split(tokens, &["*", "/", "//", "%"]);
    let mut product = String::new();
    for (i, operand) in operands.iter().enumerate() {
        let mut value = String::new();
        emit_operand(operand, &mut value);
        match i.checked_sub(1).map(|before| signs[before]) {
            None => product = value,
            Some(sign) if sign.text == "%" => {
                let mut pair = String::new();
                wrap(MODULO, &format!("{product},{value}"), &mut pair);
                product = pair;
            }
            Some(sign) => {
                copy(std::slice::from_ref(sign), &mut product);
                product.push_str(&value);
            }
        }
    }
    if signs.iter().any(|sign| sign.text == "*") {
        wrap(CHECKED, &product, text);
    } else {
        text.push_str(&product);
    }
}

/// A value with its attributes, calls, filters and tests.
fn emit_operand(tokens: &[Token], text: &mut String) {
    let mut value = String::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].kind != Kind::Open {
            copy(&tokens[at..=at], &mut value);
            at += 1;
            continue;
        }
        let end = group(tokens, at);
        let (open, inner, close) = (&tokens[at], &tokens[at + 1..end - 1], &tokens[end - 1]);
        // After a value, brackets call or index it; after the name of a test they hold what it
        // compares with.
        let literal = at == 0 || !ends_operand(&tokens[at - 1]);
        let tuple =
            open.text == "(" && (inner.is_empty() || outside(inner).any(|i| inner[i].text == ","));
        let mut part = String::new();
        copy(std::slice::from_ref(open), &mut part);
        emit_expression(inner, &mut part);
        copy(std::slice::from_ref(close), &mut part);
        if literal && (open.text != "(" || tuple) {
            wrap(CHECKED, &part, &mut value);
        } else {
            value.push_str(&part);
        }
        at = end;
    }
    let filtered = outside(tokens).any(|at| tokens[at].text == "|");
    if filtered {
        wrap(CHECKED, &value, text);
    } else {
        text.push_str(&value);
    }
}

#[cfg(test)]
mod tests;
