//! The inside of one call: a JSON object with a name and arguments, read character by character.
//!
//! Arguments are passed on as they are written, and only their end is looked for: a model's JSON may be wrong inside, and
//! that is for the caller of the function to find. What surrounds them is read strictly.

/// Longer keys and names are no call.
const MAX_NAME_BYTES: usize = 256;

/// What a call may begin with besides its name and arguments, where an object without marks is to be one.
const BARE_KEYS: [&str; 2] = ["type", "id"];

/// What a character meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the object.
    Taken,
    /// It ended the object.
    Ended,
    /// It does not fit: this is no call, or no longer one.
    Wrong,
}

/// One object on its way.
#[derive(Clone, Debug)]
pub(super) struct CallObject {
    place: Place,
    /// The string that is being read, with its escapes.
    raw: String,
    name: Option<String>,
    /// Arguments that are not passed on yet.
    arguments: String,
    has_arguments: bool,
    /// Names that count, if the object stands there without marks.
    bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A key, or the end of the object.
    KeyOrEnd,
    /// A key, behind a comma.
    Key,
    /// In a key.
    InKey { escaped: bool },
    /// The colon behind a key.
    Colon(Member),
    /// The value behind the colon.
    Value(Member),
    /// In the name.
    InName { escaped: bool },
    /// In a value of any kind.
    In(Member, Nesting),
    /// A comma, or the end of the object.
    CommaOrEnd,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// How deep in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl CallObject {
    /// An object whose brace was read. `bare` if no mark says that it is a call.
    pub(super) fn new(bare: bool) -> Self {
        Self {
            place: Place::KeyOrEnd,
            raw: String::new(),
            name: None,
            arguments: String::new(),
            has_arguments: false,
            bare,
        }
    }

    /// The function's name, once it is known and the arguments began or the object ended: from there on this is a call.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.has_arguments)
    }

    /// Takes the arguments that came since the last time.
    pub(super) fn take_arguments(&mut self) -> String {
        // A value that is none of an object, a list or a string is passed on whole: null means that there are none.
        match self.place {
            Place::In(Member::Arguments, Nesting { depth: 0, .. }) => String::new(),
            _ => std::mem::take(&mut self.arguments),
        }
    }

    /// Reads a character.
    pub(super) fn push(&mut self, c: char) -> Step {
        let space = matches!(c, ' ' | '\n' | '\r' | '\t');
        match self.place {
            Place::KeyOrEnd | Place::Key | Place::Colon(_) | Place::Value(_) | Place::CommaOrEnd if space => {
            }
            Place::KeyOrEnd | Place::CommaOrEnd if c == '}' => return self.end(),
            Place::KeyOrEnd | Place::Key if c == '"' => {
                self.raw.clear();
                self.place = Place::InKey { escaped: false };
            }
            Place::CommaOrEnd if c == ',' => self.place = Place::Key,
            Place::InKey { escaped } if c == '"' && !escaped => match self.member() {
                Some(member) => self.place = Place::Colon(member),
                None => return Step::Wrong,
            },
            Place::InName { escaped } if c == '"' && !escaped => {
                self.name = Some(unescaped(&self.raw));
                self.place = Place::CommaOrEnd;
            }
            Place::InKey { escaped } | Place::InName { escaped } => {
                if self.raw.len() >= MAX_NAME_BYTES {
                    return Step::Wrong;
                }
                self.raw.push(c);
                let escaped = c == '\\' && !escaped;
                self.place = match self.place {
                    Place::InKey { .. } => Place::InKey { escaped },
                    _ => Place::InName { escaped },
                };
            }
            Place::Colon(member) if c == ':' => self.place = Place::Value(member),
            Place::Value(Member::Name) if c == '"' => {
                self.raw.clear();
                self.place = Place::InName { escaped: false };
            }
            Place::Value(Member::Name) => return Step::Wrong,
            Place::Value(member) => return self.begin_value(member, c),
            Place::In(member, nesting) => return self.continue_value(member, nesting, c),
            Place::KeyOrEnd | Place::Key | Place::Colon(_) | Place::CommaOrEnd => return Step::Wrong,
        }
        Step::Taken
    }

    /// What the key that was read is for; `None` if a call has none such.
    fn member(&self) -> Option<Member> {
        match unescaped(&self.raw).as_str() {
            "name" if self.name.is_none() => Some(Member::Name),
            "arguments" | "parameters" if !self.has_arguments => Some(Member::Arguments),
            key if !self.bare || self.name().is_some() || BARE_KEYS.contains(&key) => Some(Member::Other),
            _ => None,
        }
    }

    /// The first character of a value.
    fn begin_value(&mut self, member: Member, c: char) -> Step {
        let nesting = match c {
            '{' | '[' => Nesting { depth: 1, in_string: false, escaped: false },
            '"' => Nesting { depth: 0, in_string: true, escaped: false },
            '-' | '0'..='9' | 't' | 'f' | 'n' => Nesting { depth: 0, in_string: false, escaped: false },
            _ => return Step::Wrong,
        };
        if member == Member::Arguments {
            self.has_arguments = true;
            self.arguments.push(c);
        }
        self.place = Place::In(member, nesting);
        Step::Taken
    }

    /// A further character of a value.
    fn continue_value(&mut self, member: Member, mut nesting: Nesting, c: char) -> Step {
        if nesting.depth == 0 && !nesting.in_string && matches!(c, ',' | '}' | ' ' | '\n' | '\r' | '\t') {
            self.place = Place::CommaOrEnd;
            if member == Member::Arguments && self.arguments == "null" {
                "{}".clone_into(&mut self.arguments);
            }
            return self.push(c);
        }
        if member == Member::Arguments {
            self.arguments.push(c);
        }
        if nesting.in_string {
            let closes = c == '"' && !nesting.escaped;
            nesting.escaped = c == '\\' && !nesting.escaped;
            nesting.in_string = !closes;
            if closes && nesting.depth == 0 {
                self.place = Place::CommaOrEnd;
                if member == Member::Arguments {
                    // Arguments that are written as a string are JSON inside it.
                    self.arguments = unescaped(&self.arguments[1..self.arguments.len() - 1]);
                }
                return Step::Taken;
            }
        } else {
            match c {
                '"' => nesting.in_string = true,
                '{' | '[' => nesting.depth += 1,
                '}' | ']' if nesting.depth == 1 => {
                    self.place = Place::CommaOrEnd;
                    return Step::Taken;
                }
                '}' | ']' if nesting.depth > 1 => nesting.depth -= 1,
                _ => {}
            }
        }
        self.place = Place::In(member, nesting);
        Step::Taken
    }

    /// The brace that ends the object.
    fn end(&mut self) -> Step {
        if self.name.is_none() {
            return Step::Wrong;
        }
        if !self.has_arguments {
            self.has_arguments = true;
            self.arguments.push_str("{}");
        }
        Step::Ended
    }
}

/// The text of a JSON string without its quotes; as it stands if it is none.
fn unescaped(raw: &str) -> String {
    serde_json::from_str(&format!("\"{raw}\"")).unwrap_or_else(|_| raw.to_owned())
}
