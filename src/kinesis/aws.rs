//! The AWS form.
