# $1 is 0 at the last removal.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable --now forebay.socket forebay.service || :
fi
