//! Functions that a model may call: how its template asks for them, how its answers name them.

use std::collections::BTreeSet;
use std::sync::Arc;

use dlc_runtime::methods::speculation::Grammar;
use dlc_runtime::{ChatTemplate, GrammarSource, StopStrings};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::serve::fields::Fields;
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
    function: Function,
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
    Named { function: Named },
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
        fields.take::<bool>("parallel_tool_calls", "true or false")?;
        let wrong = |message: String| Problem::field("tools", message);
        let tools = listed.iter().map(Tool::deserialize);
        let tools: Vec<Tool> = tools
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
                tools.iter().map(|tool| &tool.function).collect()
            }
            Some(Choice::Mode(_)) => {
                let message = format!("`tool_choice` must be {expected}");
                return Err(Problem::field("tool_choice", message));
            }
            Some(Choice::Named { function }) => {
                let all = tools.iter().map(|tool| &tool.function);
                let named: Vec<&Function> = all.filter(|tool| tool.name == function.name).collect();
                if named.is_empty() {
                    let message = format!(
                        "`tool_choice` names `{}`, which `tools` lacks",
                        function.name
                    );
                    return Err(Problem::field("tool_choice", message));
                }
                named
            }
        };
        if tools.is_empty() {
            return Ok(None);
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
            listed,
            grammar,
        }))
    }

    /// A text whose calls are to be found.
    pub fn calls(&self) -> Calls {
        Calls {
            style: self.style,
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
        let call = |function: &&Function| {
            let any = || json!({"type": "object"});
            let arguments = function.parameters.clone().unwrap_or_else(any);
            json!({
                "type": "object", "additionalProperties": false, "required": ["name", self.arguments()],
                "properties": {"name": {"const": function.name}, self.arguments(): arguments},
            })
        };
        let calls: Vec<Value> = functions.iter().map(call).collect();
        let spaces =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        let schema = json!({"anyOf": calls, "x-guidance": spaces});
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
        let found = self.before.found();
        match self.style {
            Style::Bare => match call(&self.rest, self.style) {
                Some(call) => (String::new(), vec![call]),
                None => (self.rest, vec![]),
            },
            Style::Tagged if !found => (self.before.finish(), vec![]),
            Style::Tagged => {
                let parts = self.rest.split(OPEN);
                let calls = parts.map(|part| call(part.split(CLOSE).next()?, self.style));
                match calls.collect::<Option<Vec<Value>>>() {
                    Some(calls) => (String::new(), calls),
                    None => (format!("{OPEN}{}", self.rest), vec![]),
                }
            }
        }
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
        let arguments = &mut call["function"]["arguments"];
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
            (Style::Bare, "{\"name\": \"f\"}"),
            (Style::Bare, "no {}"),
            (Style::Bare, " {"),
        ] {
            let (half, rest) = text.split_at(3);
            assert_eq!(read(style, &[half, rest]), (text.to_owned(), vec![]));
        }
    }
}
