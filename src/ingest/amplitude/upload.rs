//! A body of `/2/httpapi` or `/batch`, taken apart in one scan.
//!
//! Place: [`Upload::read`] proves a body to be JSON and notes where its events lie and where, in each, the members that mean
//! something. Judging an event and writing its row follow these notes, and read of what lies between them only what no column takes.
//!
//! What is noted is bounded: 12 bytes for a member, of which the shortest (`"ip":1,`) is 7 bytes of the body, and 20 for each of at
//! most `events_max` events. Of members that share a name the last one counts. Pure.

use std::borrow::Cow;

use super::field::Field;
use super::{ID_CHARS_MIN, Refusal, moment_us};
use crate::ingest::json::{Memory, Scan};
use crate::ingest::members::{Members, name_in, text};

/// A body of `/2/httpapi` or `/batch`.
#[derive(Debug)]
pub struct Upload<'b> {
    /// As sent.
    pub api_key: Cow<'b, str>,
    /// Characters that an id has at least.
    pub id_chars_min: usize,
    /// When the client says that it sent this, in microseconds since 1970.
    pub client_upload_us: Option<i64>,
    body: &'b str,
    events: Vec<Place>,
    /// Of all events, one after the other.
    notes: Vec<Note>,
}

/// Where an event lies, and what is known of it.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// In the body.
    start: u32,
    end: u32,
    /// Its first note; the next event's first is its end.
    notes: u32,
    /// Arrays and objects within each other.
    depth: u32,
    has_rest: bool,
}

/// Where a member's value lies, counted from its event's first byte.
#[derive(Clone, Copy, Debug)]
struct Note {
    field: Field,
    start: u32,
    end: u32,
}

/// An event as it was sent, not judged.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'u> {
    /// The whole of it.
    pub json: &'u str,
    notes: &'u [Note],
    /// Arrays and objects within each other.
    pub(super) depth: usize,
    /// It has members that no column takes.
    pub(super) has_rest: bool,
}

/// What was sent under `events`, last.
#[derive(Clone, Copy)]
enum Events {
    Array { too_many: bool },
    Other,
}

impl<'b> Upload<'b> {
    /// Reads a decoded body of at most `events_max` events, and of less than 4 GiB.
    ///
    /// # Errors
    /// What is wrong with the request as a whole.
    pub fn read(body: &'b [u8], events_max: usize) -> Result<Self, Refusal> {
        let body = std::str::from_utf8(body).map_err(|_| Refusal::NotJson)?;
        if u32::try_from(body.len()).is_err() {
            return Err(Refusal::TooLarge);
        }
        let mut upload = Self {
            api_key: Cow::Borrowed(""),
            id_chars_min: ID_CHARS_MIN,
            client_upload_us: None,
            body,
            events: Vec::new(),
            notes: Vec::new(),
        };
        let (mut api_key, mut events, mut options, mut client_upload) = (None, None, None, None);
        let mut memory = Memory::default();
        let mut scan = Scan::new(body.as_bytes(), &mut memory);
        let members = scan.members(|scan, name| {
            let name = name_in(body, name);
            if name == "events" && scan.token() == b'[' {
                let too_many = upload.read_events(scan, events_max)?;
                events = Some(Events::Array { too_many });
                return Some(());
            }
            let value = &body[scan.span()?];
            let given = (value != "null").then_some(value);
            match name.as_ref() {
                "api_key" => api_key = given,
                "events" => events = given.map(|_| Events::Other),
                "options" => options = given,
                "client_upload_time" => client_upload = given,
                _ => {}
            }
            Some(())
        });
        if members.is_none() || !scan.is_over() {
            return Err(Refusal::NotJson);
        }
        upload.api_key = text(api_key.ok_or(Refusal::Missing("api_key"))?).ok_or(Refusal::UnknownKey)?;
        match events {
            None => return Err(Refusal::Missing("events")),
            Some(Events::Other) => return Err(Refusal::Wrong("events")),
            Some(Events::Array { too_many: true }) => return Err(Refusal::TooLarge),
            Some(Events::Array { too_many: false }) => {}
        }
        let options = options.and_then(Members::of).unwrap_or_default();
        upload.id_chars_min = options.given("min_id_length").and_then(|number| number.parse().ok()).unwrap_or(ID_CHARS_MIN);
        upload.client_upload_us = client_upload.and_then(moment_us);
        Ok(upload)
    }

    /// Takes the array of events apart; those before it, under the same name, do not count. Whether there are too many.
    fn read_events(&mut self, scan: &mut Scan<'_>, events_max: usize) -> Option<bool> {
        self.events.clear();
        self.notes.clear();
        let mut too_many = false;
        scan.elements(|scan| {
            if self.events.len() == events_max {
                too_many = true;
                return scan.skip();
            }
            let is_object = scan.token() == b'{';
            let start = scan.at();
            let notes = self.notes.len() as u32;
            let (mut depth, mut has_rest) = (0, false);
            if is_object {
                scan.members(|scan, name| {
                    let field = match name.escaped {
                        false => Field::of(&self.body.as_bytes()[name.start..name.end]),
                        true => Field::of(name_in(self.body, name).as_bytes()),
                    };
                    let (span, deep) = scan.span_and_depth()?;
                    depth = depth.max(deep);
                    match field {
                        Some(field) => {
                            // The body has less than 4 GiB.
                            let (start, end) = ((span.start - start) as u32, (span.end - start) as u32);
                            self.notes.push(Note { field, start, end });
                        }
                        None => has_rest = true,
                    }
                    Some(())
                })?;
            } else {
                scan.skip()?;
            }
            let place = Place { start: start as u32, end: scan.at() as u32, notes, depth: depth as u32 + 1, has_rest };
            self.events.push(place);
            Some(())
        })?;
        Some(too_many)
    }

    /// How many events it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.events.len()
    }

    /// The events as sent, in their order.
    pub fn sent(&self) -> impl Iterator<Item = Sent<'_>> {
        let ends = self.events.iter().skip(1).map(|next| next.notes as usize).chain([self.notes.len()]);
        self.events.iter().zip(ends).map(|(place, notes_end)| Sent {
            json: &self.body[place.start as usize..place.end as usize],
            notes: &self.notes[place.notes as usize..notes_end],
            depth: place.depth as usize,
            has_rest: place.has_rest,
        })
    }
}

impl<'u> Sent<'u> {
    /// The value of a field, where `null` is as good as absent.
    pub(super) fn given(&self, field: Field) -> Option<&'u str> {
        let note = self.notes.iter().rev().find(|note| note.field == field)?;
        self.value(note)
    }

    /// The values of all fields, by the field's number.
    pub(super) fn all_given(&self) -> [Option<&'u str>; Field::COUNT] {
        let mut all = [None; Field::COUNT];
        for note in self.notes {
            all[note.field as usize] = self.value(note);
        }
        all
    }

    fn value(&self, note: &Note) -> Option<&'u str> {
        let value = &self.json[note.start as usize..note.end as usize];
        (value != "null").then_some(value)
    }
}
