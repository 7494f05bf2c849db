//! Chat templates: messages to the text a model was trained on, equal to transformers' `apply_chat_template`.
//!
//! A template is a Jinja program from a model repository, so it is untrusted input: it sees nothing but its
//! arguments, has an instruction budget, and its failure is an error value. It runs in minijinja with what
//! templates expect of Python: methods of strings and dictionaries, Python's spelling of values and of JSON,
//! `raise_exception` and `strftime_now`.

mod arguments;
mod continued;
mod methods;
mod python;
mod tool_calls;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use crate::tokenizer::{self, Files};

pub use tool_calls::{Parsed, ToolCall, ToolFormat};

/// Instructions a template may execute: enough for tens of thousands of messages, gone in half a second.
const FUEL: u64 = 5_000_000;

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the folder cannot be read.
    #[error(transparent)]
    File(#[from] tokenizer::Error),
    /// The folder's templates have a shape that is not known.
    #[error("{0}")]
    Malformed(String),
    /// There are several templates, none of them is the default, and the request names none.
    #[error("the model has chat templates {0:?} and no default: name one")]
    NoDefault(Vec<String>),
    /// The template is not Jinja, or used something that is not there.
    #[error("chat template {name}: {reason}")]
    Template {
        /// The template's name.
        name: String,
        /// Line and reason.
        reason: String,
    },
    /// The template refused the conversation by `raise_exception`.
    #[error("chat template {name} refuses the conversation: {message}")]
    Refused {
        /// The template's name.
        name: String,
        /// The template's own message.
        message: String,
    },
    /// The last message cannot be continued.
    #[error("the last message cannot be continued: {0}")]
    Continued(&'static str),
}

/// The templates of a model, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    special: BTreeMap<String, String>,
    tool_format: ToolFormat,
    takes_text_arguments: bool,
}

/// What to render.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatRequest<'a> {
    /// The messages: objects with `role`, `content` and whatever else the template reads. Fields that are
    /// null are taken as absent.
    pub messages: &'a [Json],
    /// JSON schemas of tools the model may call.
    pub tools: Option<&'a [Json]>,
    /// Documents for retrieval.
    pub documents: Option<&'a [Json]>,
    /// Whether the text ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the text ends with the last message, without what the template writes behind it: a response
    /// goes on where the message ends.
    pub continue_final_message: bool,
    /// Further variables, such as `enable_thinking`.
    pub variables: Option<&'a Map<String, Json>>,
    /// The time `strftime_now` tells, in the local time zone; now when `None`.
    pub now: Option<SystemTime>,
}

impl ChatTemplate {
    /// The only template of a model, with the special tokens it may use, by role (`bos_token`, ...).
    ///
    /// # Errors
    /// When it is not Jinja.
    pub fn new(source: &str, special: BTreeMap<String, String>) -> Result<Self, Error> {
        Self::compile(BTreeMap::from([("default".to_owned(), source.to_owned())]), special)
    }

    /// The templates of a model folder, `None` if it has none: `chat_template.jinja` and
    /// `additional_chat_templates/*.jinja`, else `chat_template` in `chat_template.json` or in
    /// `tokenizer_config.json`, there one template or a list of named ones.
    ///
    /// # Errors
    /// When a file cannot be read, or a template is not Jinja.
    pub fn load(dir: &Path, special: BTreeMap<String, String>) -> Result<Option<Self>, Error> {
        Self::read(Files::Folder(dir), special)
    }

    /// The same from files in memory, or in a folder.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn read(files: Files<'_>, special: BTreeMap<String, String>) -> Result<Option<Self>, Error> {
        let mut sources = jinja_files(files)?;
        for name in ["chat_template.json", "tokenizer_config.json"] {
            if !sources.is_empty() {
                break;
            }
            let Some(mut object) = files.read_object(name)? else { continue };
            sources = templates_of(object.remove("chat_template"))
                .map_err(|reason| Error::Malformed(format!("{}: {reason}", files.path(name).display())))?;
        }
        if sources.is_empty() { Ok(None) } else { Self::compile(sources, special).map(Some) }
    }

    fn compile(sources: BTreeMap<String, String>, special: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().expect("the default delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(python::write_value);
        environment.set_unknown_method_callback(methods::call);
        environment.add_filter("tojson", python::to_json);
        environment.add_filter("indent", methods::indent);
        environment.add_filter("string", |value: Value| python::str_of(&value));
        environment.add_function("raise_exception", raise_exception);
        let names = sources.keys().cloned().collect();
        let tool_format = sources.get("tool_use").or_else(|| sources.values().next());
        let tool_format = tool_format.map_or(ToolFormat::Json, |source| ToolFormat::of_template(source));
        for (name, source) in sources {
            let source = without_generation_marks(&source.replace("\r\n", "\n"));
            let compiled = environment.add_template_owned(name.clone(), source);
            compiled.map_err(|error| failure(&name, &error))?;
        }
        let mut template = Self { environment, names, special, tool_format, takes_text_arguments: false };
        template.takes_text_arguments = arguments::are_taken_as_text(&template);
        Ok(template)
    }

    /// How the model writes calls of tools.
    pub fn tool_format(&self) -> ToolFormat {
        self.tool_format
    }

    /// Whether the arguments of calls in a history have to be JSON text for this template. All others take
    /// objects, as transformers hands them.
    pub fn takes_text_arguments(&self) -> bool {
        self.takes_text_arguments
    }

    /// The names of the templates.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Renders with the default template: `tool_use` where there is one and the request has tools.
    ///
    /// # Errors
    /// When the template fails on the request, refuses it, or exceeds its instruction budget.
    pub fn render(&self, request: &ChatRequest) -> Result<String, Error> {
        let name = match self.names.as_slice() {
            _ if request.tools.is_some() && self.has("tool_use") => "tool_use",
            [only] => only,
            names if !self.has("default") => return Err(Error::NoDefault(names.to_vec())),
            _ => "default",
        };
        self.render_named(name, request)
    }

    fn has(&self, wanted: &str) -> bool {
        self.names.iter().any(|name| name == wanted)
    }

    /// Renders with the template of this name.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and when there is no such template.
    pub fn render_named(&self, name: &str, request: &ChatRequest) -> Result<String, Error> {
        if request.continue_final_message {
            return continued::render(request, |marked| self.render_whole(name, marked));
        }
        self.render_whole(name, request)
    }

    fn render_whole(&self, name: &str, request: &ChatRequest) -> Result<String, Error> {
        let template = self.environment.get_template(name).map_err(|error| failure(name, &error))?;
        let context = self.context(request);
        // minijinja 3.0.5 panics on some programs: `{{ ''[::-1] }}` indexes an empty string. Nothing survives
        // a rendering that could be left inconsistent.
        let rendered = std::panic::catch_unwind(AssertUnwindSafe(|| template.render(context)));
        let Ok(rendered) = rendered else {
            let reason = "the template engine crashed".to_owned();
            return Err(Error::Template { name: name.to_owned(), reason });
        };
        rendered.map_err(|error| failure(name, &error))
    }

    /// The template's variables; later ones overwrite earlier ones, as in transformers.
    fn context(&self, request: &ChatRequest) -> BTreeMap<String, Value> {
        let messages: Value =
            request.messages.iter().map(present_fields).map(|json| value_of(&json)).collect();
        let now = request.now.unwrap_or_else(SystemTime::now);
        let mut context = BTreeMap::from([
            ("strftime_now".to_owned(), Value::from_function(move |format: &str| strftime(now, format))),
            ("messages".to_owned(), messages),
            ("tools".to_owned(), list_of(request.tools)),
            ("documents".to_owned(), list_of(request.documents)),
            ("add_generation_prompt".to_owned(), Value::from(request.add_generation_prompt)),
        ]);
        context.extend(self.special.iter().map(|(role, token)| (role.clone(), Value::from(token.as_str()))));
        let variables = request.variables.into_iter().flatten();
        context.extend(variables.map(|(name, value)| (name.clone(), value_of(value))));
        context
    }
}

/// The template's view of a list that may be absent.
fn list_of(items: Option<&[Json]>) -> Value {
    items.map_or(Value::from(()), |items| items.iter().map(value_of).collect())
}

/// The template's view of a JSON value.
fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), value_of(value))))
        }
    }
}

/// A message without its null fields. Thoughts go by three names; templates read one or another.
fn present_fields(message: &Json) -> Json {
    const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Json::Object(fields) = message else { return message.clone() };
    let mut present: Map<String, Json> = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(thoughts) = THOUGHTS.iter().find_map(|name| present.get(*name)).cloned() {
        present.entry("thinking").or_insert_with(|| thoughts.clone());
        present.insert("reasoning_content".to_owned(), thoughts);
    }
    Json::Object(present)
}

/// The templates that have files of their own, by name.
fn jinja_files(files: Files<'_>) -> Result<BTreeMap<String, String>, Error> {
    let mut sources = BTreeMap::new();
    if let Some(text) = files.read_text("chat_template.jinja")? {
        sources.insert("default".to_owned(), text);
    }
    for path in files.names_in("additional_chat_templates") {
        let Some(stem) = path.strip_suffix(".jinja") else { continue };
        let name = stem.rsplit('/').next().unwrap_or(stem);
        if let Some(text) = files.read_text(&path)? {
            sources.insert(name.to_owned(), text);
        }
    }
    Ok(sources)
}

/// What stands where a chat template should.
#[derive(Debug, thiserror::Error)]
#[error("chat_template is neither a template nor a list of objects with name and template")]
struct NoTemplate;

/// The `chat_template` of a JSON file: absent, one template, or a list of named ones.
fn templates_of(value: Option<Json>) -> Result<BTreeMap<String, String>, NoTemplate> {
    match value {
        None | Some(Json::Null) => Ok(BTreeMap::new()),
        Some(Json::String(source)) => Ok(BTreeMap::from([("default".to_owned(), source)])),
        Some(Json::Array(entries)) => {
            entries.iter().map(named_template).collect::<Option<_>>().ok_or(NoTemplate)
        }
        Some(_) => Err(NoTemplate),
    }
}

/// Name and source of an entry in a list of templates.
fn named_template(entry: &Json) -> Option<(String, String)> {
    let (name, source) = (entry.get("name")?.as_str()?, entry.get("template")?.as_str()?);
    Some((name.to_owned(), source.to_owned()))
}

/// transformers' own `{% generation %}` block marks what the assistant wrote and renders as its content.
fn without_generation_marks(source: &str) -> String {
    let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is valid");
    let replaced = marks.replace_all(source, |captures: &regex::Captures| {
        let statement = if captures.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {statement} {}%}}", &captures[1], &captures[3])
    });
    replaced.into_owned()
}

/// What a template said by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

fn strftime(now: SystemTime, format: &str) -> Result<String, minijinja::Error> {
    let formatted = jiff::Timestamp::try_from(now)
        .and_then(|time| jiff::fmt::strtime::format(format, &time.to_zoned(jiff::tz::TimeZone::system())));
    formatted.map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

fn failure(name: &str, error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Error::Refused { name: name.to_owned(), message: message.clone() };
        }
        source = cause.source();
    }
    Error::Template { name: name.to_owned(), reason: error.to_string() }
}
