//! JSON Schemas (draft 7) of the messages, generated from their types.
//!
//! The schema of a command, or of a request to cancel, accepts exactly the JSON values that the parser accepts. A schema
//! cannot say three rules of the parser: the size of the body, its nesting, and that no key occurs twice.

pub(crate) mod value;

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::cancel_request::CancelRequest;
use crate::command::Command;
use crate::event::{self, EventKind};
use crate::rules::Rules;

/// The schema of a command.
pub fn command(rules: &Rules) -> Schema {
    let mut schema = of_type::<Command>("Command");
    let config = schema.pointer_mut("/properties/config").expect("a command has a config");
    let names = |names: &[&'static str]| names.iter().map(|name| json!(name)).chain([Value::Null]).collect::<Value>();
    config["properties"]["engine"]["enum"] = names(&rules.engines);
    config["properties"]["style_preset"]["enum"] = names(&rules.style_presets);
    let mut limit = |key: &str, minimum: Value, maximum: Value| {
        config["properties"][key]["minimum"] = minimum;
        config["properties"][key]["maximum"] = maximum;
    };
    limit("cfg_scale", json!(rules.cfg_scale.start()), json!(rules.cfg_scale.end()));
    limit("steps", json!(rules.steps.start()), json!(rules.steps.end()));
    limit("seed", json!(0), json!(u32::MAX));
    config["not"] = json!({
        "type": "object",
        "required": ["engine", "upscaler"],
        "properties": {
            "engine": {"enum": rules.engines_without_fast_upscaler},
            "upscaler": {"const": "fast"},
        },
    });
    schema
}

/// The schema of a request to cancel a job.
pub fn cancel() -> Schema {
    of_type::<CancelRequest>("Request to cancel a job")
}

/// The schema of an event. Later versions may add keys, so it allows unknown ones.
pub fn event(kind: EventKind) -> Schema {
    let settings = SchemaSettings::draft07().for_serialize().with(|settings| settings.inline_subschemas = true);
    let mut schema = event::body_schema(kind, settings.into_generator());
    NonNull.transform(&mut schema);
    schema.insert("title".to_owned(), json!(kind.as_str()));
    let description = match kind {
        EventKind::Started => "The job was claimed for the first time.",
        EventKind::Progress => "An image completed or failed.",
        EventKind::Completed => "The job ended, and enough of its images were completed.",
        EventKind::Failed => "The job ended, and did not complete.",
    };
    schema.insert("description".to_owned(), json!(description));
    schema
}

fn of_type<T: JsonSchema>(title: &str) -> Schema {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".to_owned(), json!(title));
    schema
}

/// Removes `null` from the types of optional keys, which are left out if they have no value.
struct NonNull;

impl Transform for NonNull {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|name| name != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(options)) = schema.get_mut("anyOf") {
            options.retain(|option| option["type"] != "null");
            if let [Value::Object(only)] = options.as_slice() {
                let only = only.clone();
                schema.remove("anyOf");
                for (key, value) in only {
                    schema.ensure_object().entry(key).or_insert(value);
                }
            }
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests;
