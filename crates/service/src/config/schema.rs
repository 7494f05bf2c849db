//! The keys of a configuration, read off the JSON schema that its types derive: names, types, defaults and
//! the sentences that document them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::Error;
use super::origin::join;

/// Most places that are named for a key that is unknown where it stands.
const MOST_ELSEWHERE: usize = 3;

/// What a configuration may hold.
#[derive(Debug)]
pub struct Schema {
    root: Value,
}

/// A table of a configuration, such as `[coordinator.data]`.
#[derive(Debug)]
pub struct Section {
    /// Its dotted path; empty at the top, `scorers[]` for the tables of a list.
    pub path: String,
    /// The key and value that choose it among several forms, such as `kind = "python"`.
    pub variant: Option<String>,
    /// What it is.
    pub meaning: String,
    /// Its keys, tables apart.
    pub keys: Vec<Key>,
}

/// A key of a configuration.
#[derive(Debug)]
pub struct Key {
    /// Its dotted path.
    pub path: String,
    /// Its type, in words.
    pub kind: String,
    /// What it has when nobody sets it; `None` where it must be set or where absence means something.
    pub default: Option<Value>,
    /// What it has here; `None` where it is not set. Always `None` in a section without values.
    pub value: Option<Value>,
    /// What it is.
    pub meaning: String,
    /// The names it can hold, where they are a closed set.
    pub choices: Vec<Choice>,
}

/// A name that a key can hold.
#[derive(Debug)]
pub struct Choice {
    /// The name.
    pub name: String,
    /// What it means.
    pub meaning: String,
}

impl Schema {
    /// The schema of a configuration's type.
    pub fn of<C: JsonSchema>() -> Self {
        let settings = SchemaSettings::draft2020_12().for_deserialize();
        Self { root: SchemaGenerator::new(settings).into_root_schema_for::<C>().to_value() }
    }

    /// As JSON, for editors that check and complete TOML.
    pub fn json(&self) -> &Value {
        &self.root
    }

    /// Every table that can be, lists of tables once.
    pub fn sections(&self) -> Vec<Section> {
        let mut walk = Walk { schema: self, sections: Vec::new() };
        walk.table("", &Node::new(self, &self.root), None);
        walk.sections
    }

    /// Every table of a configuration with these values.
    pub fn sections_of(&self, values: &Value) -> Vec<Section> {
        let mut walk = Walk { schema: self, sections: Vec::new() };
        walk.table("", &Node::new(self, &self.root), Some(values));
        walk.sections
    }
}

impl Schema {
    /// Keys and tables that have the last name of a key that is unknown, those nearest to it.
    pub(super) fn elsewhere(&self, unknown: &str) -> Vec<String> {
        let unknown = without_indices(unknown);
        let (section, name) = unknown.rsplit_once('.').unwrap_or(("", &unknown));
        let sections = self.sections();
        let keys = sections.iter().flat_map(|section| section.keys.iter().map(|key| &*key.path));
        let paths = sections.iter().map(|section| &*section.path).chain(keys).map(without_indices);
        let mut found: Vec<(usize, String)> = paths
            .filter(|path| path.rsplit('.').next() == Some(name))
            .map(|path| (shared_parts(&path, section), path))
            .collect();
        let nearest = found.iter().map(|(shared, _)| *shared).max();
        found.retain(|(shared, _)| Some(*shared) == nearest);
        found.dedup();
        found.truncate(MOST_ELSEWHERE);
        found.into_iter().map(|(_, path)| path).collect()
    }
}

/// How many parts two dotted paths begin with alike.
fn shared_parts(one: &str, other: &str) -> usize {
    one.split('.').zip(other.split('.')).take_while(|(one, other)| one == other).count()
}

/// A place in the schema: what is written there, and what it refers to.
struct Node<'s> {
    written: &'s Value,
    target: &'s Value,
}

impl<'s> Node<'s> {
    /// Follows references, and looks through "this or null".
    fn new(schema: &'s Schema, written: &'s Value) -> Self {
        let mut target = written;
        loop {
            if let Some(name) = target["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
                target = &schema.root["$defs"][name];
            } else if let Some([value]) = alternatives(target).as_deref() {
                target = value;
            } else {
                return Self { written, target };
            }
        }
    }

    fn meaning(&self) -> String {
        let texts = [&self.written["description"], &self.target["description"]];
        let text = texts.into_iter().find_map(Value::as_str).unwrap_or_default();
        prose(text)
    }

    /// The keys of a table that are the same in all its forms.
    fn properties(&self) -> Option<&'s Map<String, Value>> {
        self.target["properties"].as_object()
    }

    /// The forms of a table that one key tells apart.
    fn variants(&self, schema: &'s Schema) -> Vec<Variant<'s>> {
        let forms = self.target["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
        forms.iter().filter_map(|form| Variant::of(schema, form)).collect()
    }

    fn is_table(&self, schema: &'s Schema) -> bool {
        self.properties().is_some_and(|properties| !properties.is_empty())
            || !self.variants(schema).is_empty()
    }

    /// What a list of tables holds.
    fn table_items(&self, schema: &'s Schema) -> Option<Node<'s>> {
        let items = Node::new(schema, self.target.get("items")?);
        items.is_table(schema).then_some(items)
    }

    fn kind(&self, schema: &'s Schema) -> String {
        if let Some(kind) = self.written["x-kind"].as_str().or(self.target["x-kind"].as_str()) {
            return kind.to_owned();
        }
        if self.target.get("oneOf").is_some() || self.target.get("enum").is_some() {
            return "name".to_owned();
        }
        if let Some(forms) = alternatives(self.target) {
            let kinds: Vec<String> = forms.iter().map(|form| Node::new(schema, form).kind(schema)).collect();
            return kinds.join(" or ");
        }
        if let Some(value) = self.target.get("const") {
            return format!("`{value}`");
        }
        match type_name(self.target) {
            "string" => "text".to_owned(),
            "array" => {
                let items = self.target.get("items").or_else(|| self.target["prefixItems"].get(0));
                format!(
                    "list of {}",
                    items.map_or("values".into(), |items| Node::new(schema, items).kind(schema))
                )
            }
            "object" => "table".to_owned(),
            "" => "any".to_owned(),
            other => other.to_owned(),
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let named = self.target["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let plain = named.map(|name| Choice { name: name.to_owned(), meaning: String::new() });
        let forms = self.target["oneOf"].as_array().into_iter().flatten();
        plain.chain(forms.flat_map(choices_of_form)).collect()
    }
}

/// A form of a table, as an internally tagged enum has them.
struct Variant<'s> {
    key: &'s str,
    name: &'s str,
    form: Node<'s>,
}

impl<'s> Variant<'s> {
    fn of(schema: &'s Schema, form: &'s Value) -> Option<Self> {
        let (key, value) =
            form["properties"].as_object()?.iter().find(|(_, value)| value.get("const").is_some())?;
        Some(Self { key, name: value["const"].as_str()?, form: Node::new(schema, form) })
    }

    fn is_chosen_by(&self, values: &Value) -> bool {
        values[self.key].as_str() == Some(self.name)
    }

    /// Its keys: those beside the tag, and those of what it refers to.
    fn properties(&self) -> impl Iterator<Item = (&'s String, &'s Value)> {
        let beside = self.form.written["properties"].as_object();
        let referred =
            self.form.target["properties"].as_object().filter(|_| self.form.written.get("$ref").is_some());
        beside.into_iter().flatten().chain(referred.into_iter().flatten())
    }
}

/// Goes through tables, with values or without.
struct Walk<'s> {
    schema: &'s Schema,
    sections: Vec<Section>,
}

/// A table below another one.
struct Inner<'s> {
    path: String,
    node: Node<'s>,
    values: Option<&'s Value>,
}

impl<'s> Walk<'s> {
    fn table(&mut self, path: &str, node: &Node<'s>, values: Option<&'s Value>) {
        let variants = node.variants(self.schema);
        let mut properties: Vec<(&'s String, &'s Value)> = node.properties().into_iter().flatten().collect();
        let chosen = values.and_then(|values| variants.iter().find(|variant| variant.is_chosen_by(values)));
        properties.extend(chosen.into_iter().flat_map(Variant::properties));
        let variant = chosen.map(|variant| format!("{} = {:?}", variant.key, variant.name));
        let head = Section { path: path.to_owned(), variant, meaning: node.meaning(), keys: Vec::new() };
        self.section(head, &properties, values);
        if values.is_none() {
            for variant in &variants {
                let tag = format!("{} = {:?}", variant.key, variant.name);
                let head = Section {
                    path: path.to_owned(),
                    variant: Some(tag),
                    meaning: variant.form.meaning(),
                    keys: Vec::new(),
                };
                let keys: Vec<_> = variant.properties().collect();
                self.section(head, &keys, None);
            }
        }
    }

    fn section(
        &mut self,
        mut section: Section,
        properties: &[(&'s String, &'s Value)],
        values: Option<&'s Value>,
    ) {
        let mut inner = Vec::new();
        for (name, written) in properties {
            let path = join(&section.path, name);
            let value = values.and_then(|values| values.get(name.as_str())).filter(|value| !value.is_null());
            match self.inner_tables(&path, written, values.is_some(), value) {
                Some(tables) => inner.extend(tables),
                None => section.keys.push(self.key(path, written, value)),
            }
        }
        self.sections.push(section);
        for Inner { path, node, values } in inner {
            self.table(&path, &node, values);
        }
    }

    /// The tables that a key holds; `None` where it holds a value, or no table although it could.
    fn inner_tables(
        &self,
        path: &str,
        written: &'s Value,
        with_values: bool,
        value: Option<&'s Value>,
    ) -> Option<Vec<Inner<'s>>> {
        let node = Node::new(self.schema, written);
        if node.is_table(self.schema) {
            let there = !with_values || value.is_some();
            return there.then(|| vec![Inner { path: path.to_owned(), node, values: value }]);
        }
        node.table_items(self.schema)?;
        if !with_values {
            let node = node.table_items(self.schema)?;
            return Some(vec![Inner { path: format!("{path}[]"), node, values: None }]);
        }
        let items = value?.as_array().filter(|items| !items.is_empty())?;
        let numbered = items.iter().enumerate().filter_map(|(index, item)| {
            let node = node.table_items(self.schema)?;
            Some(Inner { path: format!("{path}[{index}]"), node, values: Some(item) })
        });
        Some(numbered.collect())
    }

    fn key(&self, path: String, written: &'s Value, value: Option<&'s Value>) -> Key {
        let node = Node::new(self.schema, written);
        Key {
            path,
            kind: node.kind(self.schema),
            default: written.get("default").filter(|default| !default.is_null()).cloned(),
            value: value.cloned(),
            meaning: node.meaning(),
            choices: node.choices(),
        }
    }
}

impl Key {
    /// Everything there is to say about it, without its value.
    pub fn description(&self) -> String {
        let default = self.default.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let mut text = format!("{} ({}; default {default})\n  {}\n", self.path, self.kind, self.meaning);
        for Choice { name, meaning } in &self.choices {
            text.push_str(format!("  {name:?}: {meaning}").trim_end_matches([':', ' ']));
            text.push('\n');
        }
        text
    }
}

/// The keys at a path; several where forms of a table each have one. Indices of lists may be left out.
///
/// # Errors
/// When there is none, with those of the same name.
pub fn find_keys<'s>(sections: &'s [Section], path: &str) -> Result<Vec<&'s Key>, Error> {
    let keys = || sections.iter().flat_map(|section| &section.keys);
    let found: Vec<&Key> =
        keys().filter(|key| key.path == path || without_indices(&key.path) == path).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let name = path.rsplit('.').next().unwrap_or(path);
    let mut alike: Vec<&str> = keys().map(|key| &*key.path).filter(|key| key.contains(name)).collect();
    alike.dedup();
    let hint = if alike.is_empty() {
        "docs/configuration.md lists all".to_owned()
    } else {
        format!("there is {}", alike.join(", "))
    };
    Err(Error::UnknownKey { path: path.to_owned(), hint })
}

/// A path without the indices of lists: the name of a table in TOML.
pub(super) fn without_indices(path: &str) -> String {
    path.split('.').map(|key| key.split('[').next().unwrap_or(key)).collect::<Vec<_>>().join(".")
}

/// The forms of a value, null apart; `None` where it has one form only.
fn alternatives(target: &Value) -> Option<Vec<&Value>> {
    let forms = target["anyOf"].as_array()?;
    Some(forms.iter().filter(|form| form["type"] != "null").collect())
}

fn choices_of_form(form: &Value) -> Vec<Choice> {
    let meaning = prose(form["description"].as_str().unwrap_or_default());
    if let Some(name) = form["const"].as_str() {
        return vec![Choice { name: name.to_owned(), meaning }];
    }
    let plain = form["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let tables = form["properties"].as_object().into_iter().flat_map(Map::keys).map(String::as_str);
    plain.chain(tables).map(|name| Choice { name: name.to_owned(), meaning: meaning.clone() }).collect()
}

/// The type of a schema, null apart.
fn type_name(target: &Value) -> &str {
    match &target["type"] {
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("")
        }
        name => name.as_str().unwrap_or(""),
    }
}

/// A doc comment as one paragraph, without the brackets of links between items.
fn prose(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace("[`", "`").replace("`]", "`")
}
