"""A client for ../interop.py, called like client.py: libcurl, by pycurl."""

import sys

import pycurl

VERSIONS = {
    "1.2": pycurl.SSLVERSION_TLSv1_2 | pycurl.SSLVERSION_MAX_TLSv1_2,
    "1.3": pycurl.SSLVERSION_TLSv1_3 | pycurl.SSLVERSION_MAX_TLSv1_3,
}


def write(piece):
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def main(ca, version, what, *rest):
    curl = pycurl.Curl()
    curl.setopt(pycurl.CAINFO, ca)
    curl.setopt(pycurl.SSLVERSION, VERSIONS[version])
    curl.setopt(pycurl.FAILONERROR, True)
    curl.setopt(pycurl.TIMEOUT, 60)
    curl.setopt(pycurl.WRITEFUNCTION, write)
    if what == "talk":
        url, upload = rest
        curl.setopt(pycurl.URL, url)
        curl.perform()
        with open(upload, "rb") as file:
            curl.setopt(pycurl.URL, url + "echo")
            curl.setopt(pycurl.POSTFIELDS, file.read())
            curl.perform()
        curl.setopt(pycurl.HTTPGET, True)
        curl.setopt(pycurl.URL, url + "bytes/1000000")
        curl.perform()
        return
    curl.setopt(pycurl.FORBID_REUSE, True)
    for url in rest:
        curl.setopt(pycurl.URL, url)
        curl.perform()


if __name__ == "__main__":
    main(*sys.argv[1:])
