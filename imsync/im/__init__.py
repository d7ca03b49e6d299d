"""The instant-messaging system on top of the bus: users, groups, friends, and the copies kept in step."""
