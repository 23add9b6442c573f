# What the owners of a server and of three devices do by hand (docs/deploy.md), in one folder: sh setup.sh FOLDER HOST
set -eu
cd "$1"
if [ -d site ]; then exit 0; fi
fedsim deploy init site --host "$2"
for i in 0 1 2; do
    fedsim deploy init "device-$i" --join site/invitation.toml --client "$i" --data partition --epsilon 8 --delta 1e-4
    fedsim deploy add site "device-$i/request.csr"
    cp "site/certificates/$i.crt" "device-$i/device.crt"
done
