//! Functions that a model may call: how its template asks for them, how its answers name them.

use std::collections::BTreeSet;
use std::sync::Arc;

use dlc_runtime::methods::speculation::Grammar;
use dlc_runtime::{ChatTemplate, GrammarSource, StopStrings};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::serve::fields::{Fields, Object};
use crate::serve::models::TextModel;
use crate::serve::problem::Problem;

/// Functions of one request.
const MOST_TOOLS: usize = 128;
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// How a template has calls written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes and Qwen write them.
    Tagged,
    /// `{"name": ..., "parameters": {...}}` as the whole text, as Llama 3 writes it.
    Bare,
}

impl Style {
    fn of(template: &ChatTemplate) -> Option<Self> {
        if !template.mentions("tools") {
            None
        } else if template.mentions(OPEN) {
            Some(Self::Tagged)
        } else if template.mentions("\"parameters\"") {
            Some(Self::Bare)
        } else {
            None
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged => "arguments",
            Self::Bare => "parameters",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    r#type: String,
    function: Object<Function>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Option<Value>,
    #[serde(default, rename = "description")]
    _description: Option<String>,
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Choice {
    Mode(String),
    Named(Object<Demand>),
}

#[derive(Deserialize)]
struct Demand {
    r#type: String,
    function: Object<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The functions of a request.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    style: Style,
    /// As the template reads them.
    pub listed: Vec<Value>,
    /// What a text must be, where a call is demanded.
    pub grammar: Option<Arc<dyn Grammar>>,
    names: Arc<BTreeSet<String>>,
    /// Whether a text may have several calls.
    parallel: bool,
}

impl Tools {
    /// Takes the fields; None where the model isn't to call any.
    pub fn take(
        fields: &mut Fields,
        model: &TextModel,
        template: &ChatTemplate,
    ) -> Result<Option<Self>, Problem> {
        let expected = "a list of objects of type `function`";
        let listed: Vec<Value> = fields.take("tools", expected)?.unwrap_or_default();
        let expected = "`none`, `auto`, `required`, or an object that names a function";
        let choice = fields.take::<Choice>("tool_choice", expected)?;
        let parallel = fields.take("parallel_tool_calls", "true or false")?;
        let wrong = |message: String| Problem::field("tools", message);
        let tools = listed.iter().map(Object::<Tool>::deserialize);
        let tools: Vec<Object<Tool>> = tools
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("`tools`: {error}")))?;
        if tools.len() > MOST_TOOLS || tools.iter().any(|tool| tool.r#type != "function") {
            let message = format!("`tools` must be up to {MOST_TOOLS} of type `function`");
            return Err(wrong(message));
        }
        let demanded: Vec<&Function> = match &choice {
            Some(Choice::Mode(mode)) if mode == "none" => return Ok(None),
            None => vec![],
            Some(Choice::Mode(mode)) if mode == "auto" => vec![],
            Some(Choice::Mode(mode)) if mode == "required" => {
                tools.iter().map(|tool| &*tool.function).collect()
            }
            Some(Choice::Mode(_)) => {
                let message = format!("`tool_choice` must be {expected}");
                return Err(Problem::field("tool_choice", message));
            }
            Some(Choice::Named(demand)) if demand.r#type != "function" => {
                let message = "`tool_choice.type` must be `function`";
                return Err(Problem::field("tool_choice", message));
            }
            Some(Choice::Named(demand)) => {
                let name = &demand.function.name;
                let all = tools.iter().map(|tool| &*tool.function);
                let named: Vec<&Function> = all.filter(|tool| tool.name == *name).collect();
                if named.is_empty() {
                    let message = format!("`tool_choice` names `{name}`, which `tools` lacks");
                    return Err(Problem::field("tool_choice", message));
                }
                named
            }
        };
        if tools.is_empty() {
            let message = "`tool_choice` demands a call, and `tools` has no function";
            return match choice {
                Some(Choice::Mode(mode)) if mode == "required" => {
                    Err(Problem::field("tool_choice", message))
                }
                _ => Ok(None),
            };
        }
        let style = Style::of(template).ok_or_else(|| {
            let message = "the model's chat template has no place for functions, or a form of calls that this server doesn't know";
            wrong(message.to_owned())
        })?;
        let grammar = (!demanded.is_empty())
            .then(|| style.grammar(model, &demanded))
            .transpose()?;
        Ok(Some(Self {
            style,
            names: Arc::new(
                tools
                    .into_iter()
                    .map(|tool| tool.0.function.0.name)
                    .collect(),
            ),
            listed,
            grammar,
            parallel: parallel.unwrap_or(true),
        }))
    }

    /// A text whose calls are to be found.
    pub fn calls(&self) -> Calls {
        Calls {
            style: self.style,
            names: Arc::clone(&self.names),
            parallel: self.parallel,
            before: StopStrings::new(&[OPEN.to_owned()]),
            rest: String::new(),
        }
    }
}

impl Style {
    /// One call of one of these functions.
    fn grammar(
        self,
        model: &TextModel,
        functions: &[&Function],
    ) -> Result<Arc<dyn Grammar>, Problem> {
        // What a schema refers to is found from the root of all: each has a place there.
        let mut definitions = Map::new();
        let mut call = |(i, function): (usize, &&Function)| {
            let place = format!("function{i}");
            let any = || json!({"type": "object"});
            let mut arguments = function.parameters.clone().unwrap_or_else(any);
            refer_from(&format!("#/$defs/{place}"), &mut arguments);
            definitions.insert(place.clone(), arguments);
            json!({
                "type": "object", "additionalProperties": false, "required": ["name", self.arguments()],
                "properties": {"name": {"const": function.name}, self.arguments(): {"$ref": format!("#/$defs/{place}")}},
            })
        };
        let calls: Vec<Value> = functions.iter().enumerate().map(&mut call).collect();
        let spaces =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        let schema = json!({"anyOf": calls, "$defs": definitions, "x-guidance": spaces});
        let source = match self {
            Self::Tagged => GrammarSource::Lark(format!(
                "start: \"{OPEN}\\n\" call \"\\n{CLOSE}\"\ncall: %json {schema}\n"
            )),
            Self::Bare => GrammarSource::JsonSchema(schema),
        };
        let grammar = model.grammars()?.compile(&source);
        let grammar =
            grammar.map_err(|error| Problem::field("tools", format!("`tools`: {error}")))?;
        Ok(Arc::new(grammar))
    }
}

/// A text that may hold calls.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    style: Style,
    names: Arc<BTreeSet<String>>,
    parallel: bool,
    before: StopStrings,
    /// The text from the first call on.
    rest: String,
}

impl Calls {
    /// Takes a piece of the text, and returns what certainly is no call.
    pub fn push(&mut self, piece: &str) -> String {
        match self.style {
            Style::Bare => {
                self.rest += piece;
                let start = self.rest.trim_start();
                if start.is_empty() || start.starts_with('{') {
                    String::new()
                } else {
                    std::mem::take(&mut self.rest)
                }
            }
            Style::Tagged if self.before.found() => {
                self.rest += piece;
                String::new()
            }
            Style::Tagged => {
                let mut text = String::new();
                for (at, character) in piece.char_indices() {
                    text += &self.before.push(character.encode_utf8(&mut [0; 4]));
                    if self.before.found() {
                        self.rest += &piece[at + character.len_utf8()..];
                        break;
                    }
                }
                text
            }
        }
    }

    /// What was held back and is no call, and the calls; text that is no valid call stays text.
    pub fn finish(self) -> (String, Vec<Value>) {
        if self.style == Style::Tagged && !self.before.found() {
            return (self.before.finish(), vec![]);
        }
        let (mut text, mut calls) = (String::new(), vec![]);
        match self.style {
            Style::Bare => match self.call(&self.rest) {
                Some(call) => calls.push(call),
                None => text = self.rest,
            },
            Style::Tagged => {
                for part in self.rest.split(OPEN) {
                    let closed = part.split_once(CLOSE);
                    match closed.and_then(|(inner, after)| Some((self.call(inner)?, after))) {
                        Some((call, after)) => {
                            calls.push(call);
                            text += after;
                        }
                        None => text = text + OPEN + part,
                    }
                }
                if text.trim().is_empty() {
                    text.clear();
                }
            }
        }
        if !self.parallel {
            calls.truncate(1);
        }
        (text, calls)
    }

    /// A call as the model wrote it, in OpenAI's form; None where it names no function of the
    /// request.
    fn call(&self, text: &str) -> Option<Value> {
        let call = call(text, self.style)?;
        let name = call["function"]["name"].as_str()?;
        self.names.contains(name).then_some(call)
    }
}

/// Lets a schema's references begin at another place than the root.
fn refer_from(place: &str, schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            for (key, value) in keys {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(rest) = target.strip_prefix('#') {
                            *target = format!("{place}{rest}");
                        }
                    }
                    value => refer_from(place, value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| refer_from(place, value)),
        _ => {}
    }
}

/// A call in OpenAI's form, of a call as the model wrote it.
fn call(text: &str, style: Style) -> Option<Value> {
    let written: Map<String, Value> = serde_json::from_str(text.trim()).ok()?;
    let name = written.get("name")?.as_str()?;
    let arguments = written.get(style.arguments())?.as_object()?;
    let keys: BTreeSet<&str> = written.keys().map(String::as_str).collect();
    if keys != BTreeSet::from(["name", style.arguments()]) {
        return None;
    }
    let arguments = Value::from(arguments.clone()).to_string();
    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
    Some(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// Calls of an earlier answer as templates read them: their arguments are objects.
pub(super) fn with_objects(message: &mut Map<String, Value>) {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let object = arguments
            .as_str()
            .and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(object) = object {
            *arguments = object;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(style: Style, pieces: &[&str]) -> (String, Vec<(Value, Value)>) {
        let mut calls = Calls {
            style,
            names: Arc::new(["f", "g"].map(str::to_owned).into()),
            parallel: true,
            before: StopStrings::new(&[OPEN.to_owned()]),
            rest: String::new(),
        };
        let text: String = pieces.iter().map(|piece| calls.push(piece)).collect();
        let (rest, calls) = calls.finish();
        let calls = calls.into_iter().map(|call| {
            let function = &call["function"];
            (function["name"].clone(), function["arguments"].clone())
        });
        (text + &rest, calls.collect())
    }

    #[test]
    fn calls_are_found_wherever_pieces_end() {
        let whole = "Well.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
        let expected = (
            "Well.\n".to_owned(),
            vec![(json!("f"), json!("{\"x\":1}")), (json!("g"), json!("{}"))],
        );
        for end in 0..=whole.len() {
            let (a, b) = whole.split_at(end);
            assert_eq!(read(Style::Tagged, &[a, b]), expected, "{end}");
        }
        let cut =
            "a <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call> b <tool_call>{\"na";
        let (text, calls) = read(Style::Tagged, &[cut]);
        assert_eq!((text.as_str(), calls.len()), ("a  b <tool_call>{\"na", 1));
        let bare = "{\"name\": \"f\", \"parameters\": {\"x\": \"<tool_call>\"}}";
        let expected = (
            String::new(),
            vec![(json!("f"), json!("{\"x\":\"<tool_call>\"}"))],
        );
        assert_eq!(read(Style::Bare, &["", "{", &bare[1..]]), expected);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for (style, text) in [
            (Style::Tagged, "a <tool_call> b"),
            (Style::Tagged, "a <tool_cal"),
            (Style::Tagged, "<tool_call>{\"name\": \"f\"}</tool_call>"),
            (
                Style::Tagged,
                "<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>",
            ),
            (Style::Bare, "{\"name\": \"f\"}"),
            (Style::Bare, "no {}"),
            (Style::Bare, " {"),
        ] {
            let (half, rest) = text.split_at(2);
            assert_eq!(read(style, &[half, rest]), (text.to_owned(), vec![]));
        }
    }
}
