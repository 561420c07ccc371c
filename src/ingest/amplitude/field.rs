//! The members of an event that have a meaning of their own: those that are judged, and those that columns take.
//!
//! Place: `upload` asks for each member's [`Field`] as it takes a request apart; what has none goes into the row's `data`. The
//! names here are the only ones that a row's columns can be filled from. Pure.

/// Lists the fields by their names.
macro_rules! fields {
    ($($field:ident = $name:literal,)*) => {
        /// A member of an event, by what its name means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field {
            $($field,)*
        }

        impl Field {
            /// How many there are.
            pub(super) const COUNT: usize = [$(Self::$field),*].len();

            /// Of a member's name. `None`: no column takes it.
            pub(super) fn of(name: &[u8]) -> Option<Self> {
                // The compiler decides by the length first.
                Some(match name {
                    $($name => Self::$field,)*
                    _ => return None,
                })
            }
        }
    };
}

fields! {
    EventType = b"event_type",
    UserId = b"user_id",
    DeviceId = b"device_id",
    Time = b"time",
    SessionId = b"session_id",
    EventProperties = b"event_properties",
    UserProperties = b"user_properties",
    Groups = b"groups",
    GroupProperties = b"group_properties",
    GlobalUserProperties = b"global_user_properties",
    Plan = b"plan",
    InsertId = b"insert_id",
    InsertIdOfExport = b"$insert_id",
    EventId = b"event_id",
    Ip = b"ip",
    Platform = b"platform",
    OsName = b"os_name",
    OsVersion = b"os_version",
    DeviceBrand = b"device_brand",
    DeviceManufacturer = b"device_manufacturer",
    DeviceModel = b"device_model",
    DeviceFamily = b"device_family",
    DeviceType = b"device_type",
    Carrier = b"carrier",
    DeviceCarrier = b"device_carrier",
    Country = b"country",
    Region = b"region",
    City = b"city",
    Dma = b"dma",
    Language = b"language",
    LocationLat = b"location_lat",
    LocationLng = b"location_lng",
    Library = b"library",
    AppVersion = b"app_version",
    VersionName = b"version_name",
    StartVersion = b"start_version",
    Adid = b"adid",
    Idfa = b"idfa",
    PartnerId = b"partner_id",
    SourceId = b"source_id",
}
