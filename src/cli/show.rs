//! `show`: all that the daemon tells of itself, or one of the old Terway's resources as a tree.

use argh::FromArgs;
use serde_json::{Map, Value};

use super::face::{Answer, Failure, tree};
use super::known::ask;
use super::list;
use crate::rpc::Request;

/// Show all that terwayd tells of itself, as JSON; with a type, that resource as the old Terway showed it.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
pub struct Show {
    /// network_service, resource_pool or factory; and the resource's name, of which there is one
    #[argh(positional)]
    resource: Vec<String>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

impl Show {
    pub fn answer(&self) -> Result<Answer, Failure> {
        let (kind, name) = match self.resource.as_slice() {
            [] => (None, None),
            [kind] => (Some(kind), None),
            [kind, name] => (Some(kind), Some(name.as_str())),
            _ => return Err(Failure::usage("show takes a type and a name at most")),
        };
        kind.map_or(Ok(()), |kind| list::check(kind))?;
        let shown = ask(&Request::Show {})?;
        let Some(kind) = kind else { return Ok(Answer::fine(format!("{shown:#}\n"), shown)) };
        let name = list::check_name(kind, name, &shown)?;
        let leaves = list::leaves(kind, &name, &shown);
        let json: Map<String, Value> = leaves.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        Ok(Answer::fine(tree(&leaves), json.into()))
    }
}
