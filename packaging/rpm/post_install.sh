# $1 is 1 at a first installation, 2 at an upgrade.
systemd-sysusers forebay.conf || :
systemd-tmpfiles --create forebay.conf || :
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ "$1" -eq 1 ]; then
    systemctl preset forebay.socket forebay.service || :
fi
